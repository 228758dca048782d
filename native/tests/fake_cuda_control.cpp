#include <cstring>

#include "fake_cuda.h"
#include "fake_cuda_state.h"

using namespace fake_cuda;

extern "C" {

void fake_cuda_reset(int devices, std::size_t bytes) {
  Driver& all = driver();
  std::unique_lock lock(all.mutex);
  while (!all.streams.empty()) close(lock, all.streams.begin()->first);
  all.initialized = all.held = false;
  all.delay_microseconds = 0;
  all.device_bytes = bytes;
  all.devices.assign(static_cast<std::size_t>(devices), Device{});
  all.allocations.clear();
  all.registrations.clear();
  all.registered_bytes = all.registered_peak_bytes = 0;
  all.events.clear();
  all.calls.clear();
  all.failures.clear();
  all.violations.clear();
}

void fake_cuda_fail(const char* function, int nth, int code) {
  const std::lock_guard lock(driver().mutex);
  driver().failures[function] = {nth, code};
}

void fake_cuda_hold(bool held) {
  const std::lock_guard lock(driver().mutex);
  driver().held = held;
  driver().changed.notify_all();
}

void fake_cuda_delay(int microseconds) {
  const std::lock_guard lock(driver().mutex);
  driver().delay_microseconds = microseconds;
}

int fake_cuda_calls(const char* function) {
  const std::lock_guard lock(driver().mutex);
  return driver().calls[function];
}

int fake_cuda_violation_count() {
  const std::lock_guard lock(driver().mutex);
  return static_cast<int>(driver().violations.size());
}

const char* fake_cuda_violation(int index) {
  const std::lock_guard lock(driver().mutex);
  return driver().violations.at(static_cast<std::size_t>(index)).c_str();
}

int fake_cuda_leak_count() {
  const std::lock_guard lock(driver().mutex);
  const Driver& all = driver();
  std::size_t count =
      all.allocations.size() + all.registrations.size() + all.streams.size() + all.events.size();
  for (const Device& device : all.devices) count += static_cast<std::size_t>(device.retained);
  return static_cast<int>(count);
}

std::size_t fake_cuda_registered_peak_bytes() {
  const std::lock_guard lock(driver().mutex);
  return driver().registered_peak_bytes;
}

bool fake_cuda_read(Address address, void* target, std::size_t bytes) {
  const std::lock_guard lock(driver().mutex);
  if (allocation_of(address, bytes) == nullptr) return false;
  std::memcpy(target, bytes_at(address), bytes);
  return true;
}
}
