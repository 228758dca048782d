// A CUDA driver in host memory that checks every call: what the real one forbids, and what it
// would let pass to the harm of the data. A stream is a thread that does one thing after another.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace fake_cuda {

using Address = unsigned long long;

inline constexpr int success = 0, invalid_value = 1, out_of_memory = 2, not_initialized = 3,
                     no_device = 100, invalid_device = 101, invalid_context = 201,
                     already_registered = 712, not_registered = 713, invalid_handle = 400;
// No address of a processor looks like this, so whoever follows one is found out at once.
inline constexpr Address first_address = 0x0F00'0000'0000'0000;
inline constexpr std::uintptr_t page_bytes = 4096;

struct Event {
  int device;
  bool recorded = false;
  std::size_t pending = 0;
};

struct Operation {
  Event* event;  // null for a copy
  Address destination;
  const std::byte* source;
  std::size_t bytes;
  std::vector<std::byte> snapshot;
};

struct Stream {
  int device;
  std::deque<Operation> queue;
  bool closing = false;
  std::thread thread;
};

// Zeroed pages cost nothing until a copy ends in them.
struct Allocation {
  int device;
  std::size_t size;
  std::unique_ptr<std::byte, void (*)(void*)> bytes{static_cast<std::byte*>(std::calloc(size, 1)),
                                                    &std::free};
};

struct Registration {
  int device;
  bool portable;
  std::size_t bytes;
};

struct Device {
  int retained = 0;
  int sticky = success;
  std::size_t used_bytes = 0;
};

struct Driver {
  std::mutex mutex;
  std::condition_variable changed;
  bool initialized = false;
  bool held = false;
  int delay_microseconds = 0;
  std::size_t device_bytes = 0;
  std::vector<Device> devices;
  std::map<Address, Allocation> allocations;
  std::map<std::uintptr_t, Registration> registrations;
  std::size_t registered_bytes = 0, registered_peak_bytes = 0;
  std::map<Stream*, std::unique_ptr<Stream>> streams;
  std::map<Event*, std::unique_ptr<Event>> events;
  Address next_address = first_address;
  std::map<std::string, int> calls;
  std::map<std::string, std::pair<int, int>> failures;
  std::vector<std::string> violations;
};

// Never destroyed: threads of streams that a failed test leaves behind may outlast `main`.
inline Driver& driver() {
  static Driver* const one = new Driver;
  return *one;
}

// The contexts that a thread made current; a context is its device's number + 1.
struct Stack {
  std::vector<int> devices;
  ~Stack() {
    if (devices.empty()) return;
    const std::lock_guard lock(driver().mutex);
    driver().violations.push_back("a thread ended with a context current");
  }
};
inline thread_local Stack current;

inline void violate(const std::string& what) { driver().violations.push_back(what); }

inline int to_fail(const std::string& function) {
  const auto found = driver().failures.find(function);
  if (found == driver().failures.end() || --found->second.first != 0) return success;
  const int code = found->second.second;
  driver().failures.erase(found);
  return code;
}

// Counts the call. The result is what it must fail with, if anything.
inline int enter(const char* function, bool needs_context) {
  Driver& all = driver();
  ++all.calls[function];
  if (const int code = to_fail(function); code != success) return code;
  if (!all.initialized) {
    violate(std::string(function) + " before cuInit");
    return not_initialized;
  }
  if (!needs_context) return success;
  if (current.devices.empty()) {
    violate(std::string(function) + " without a current context");
    return invalid_context;
  }
  return all.devices[static_cast<std::size_t>(current.devices.back())].sticky;
}

inline bool is_current(int device) {
  return !current.devices.empty() && current.devices.back() == device;
}

inline Allocation* allocation_of(Address address, std::size_t bytes) {
  auto found = driver().allocations.upper_bound(address);
  if (found == driver().allocations.begin()) return nullptr;
  --found;
  const std::size_t offset = address - found->first;
  const std::size_t size = found->second.size;
  return offset <= size && bytes <= size - offset ? &found->second : nullptr;
}

inline std::byte* bytes_at(Address address) {
  const auto found = --driver().allocations.upper_bound(address);
  return found->second.bytes.get() + (address - found->first);
}

inline bool is_registered(std::uintptr_t begin, std::size_t bytes) {
  auto found = driver().registrations.upper_bound(begin);
  if (found == driver().registrations.begin()) return false;
  --found;
  const Registration& one = found->second;
  return begin + bytes <= found->first + one.bytes && (one.portable || is_current(one.device));
}

template <typename Condition>
bool any_copy(const Condition& condition) {
  for (const auto& [key, stream] : driver().streams)
    for (const Operation& operation : stream->queue)
      if (operation.event == nullptr && condition(operation)) return true;
  return false;
}

inline bool is_idle(int device) {
  for (const auto& [key, stream] : driver().streams)
    if (stream->device == device && !stream->queue.empty()) return false;
  return true;
}

inline void copy(Device& device, const Operation& operation) {
  if (const int code = to_fail("copy"); code != success) device.sticky = code;
  if (device.sticky != success) return;
  if (allocation_of(operation.destination, operation.bytes) == nullptr) {
    violate("memory of the device was freed under a copy");
  } else if (std::memcmp(operation.snapshot.data(), operation.source, operation.bytes) != 0) {
    violate("memory of the host was changed under a copy");
  } else {
    std::memcpy(bytes_at(operation.destination), operation.source, operation.bytes);
  }
}

inline void serve(Stream* stream) {
  Driver& all = driver();
  std::unique_lock lock(all.mutex);
  for (;;) {
    all.changed.wait(lock, [&] {
      return (stream->closing && stream->queue.empty()) ||
             (!stream->queue.empty() && (!all.held || stream->closing));
    });
    if (stream->queue.empty()) return;
    const Operation& first = stream->queue.front();
    if (first.event != nullptr) {
      --first.event->pending;
    } else {
      if (all.delay_microseconds > 0) {
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::microseconds(all.delay_microseconds));
        lock.lock();
      }
      copy(all.devices[static_cast<std::size_t>(stream->device)], first);
    }
    stream->queue.pop_front();
    all.changed.notify_all();
  }
}

// Ends the stream's thread; what is in the queue still happens.
inline void close(std::unique_lock<std::mutex>& lock, Stream* stream) {
  std::unique_ptr<Stream> owned = std::move(driver().streams.at(stream));
  driver().streams.erase(stream);
  owned->closing = true;
  driver().changed.notify_all();
  lock.unlock();
  owned->thread.join();
  lock.lock();
}

template <typename Handle>
bool is_known(const std::map<Handle*, std::unique_ptr<Handle>>& all, Handle* one,
              const char* function) {
  if (all.count(one) != 0) return true;
  violate(std::string(function) + " of a handle that is none");
  return false;
}

}  // namespace fake_cuda
