// The functions of the fake driver that the loader calls, as the driver's documentation has them.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>

#include "fake_cuda_state.h"

using namespace fake_cuda;

namespace {

using Lock = std::unique_lock<std::mutex>;

int current_device() { return current.devices.back(); }

// Releases are done even when they are to fail, so that a test can tell a leak from a failure.
bool has_context() { return driver().initialized && !current.devices.empty(); }

bool is_mapped(std::uintptr_t begin, std::size_t bytes) {
  std::vector<unsigned char> pages((bytes + page_bytes - 1) / page_bytes);
  return ::mincore(reinterpret_cast<void*>(begin), bytes, pages.data()) == 0;
}

bool holds_anything(int device) {
  const Driver& all = driver();
  const auto is_there = [device](const auto& entry) {
    if constexpr (requires { entry.second->device; }) {
      return entry.second->device == device;
    } else {
      return entry.second.device == device;
    }
  };
  return std::ranges::any_of(all.allocations, is_there) ||
         std::ranges::any_of(all.registrations, is_there) ||
         std::ranges::any_of(all.streams, is_there) || std::ranges::any_of(all.events, is_there);
}

}  // namespace

extern "C" {

int cuGetErrorName(int result, const char** text) {
  *text = result == out_of_memory ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_OF_THE_FAKE";
  return success;
}

int cuGetErrorString(int, const char** text) {
  *text = "as the test wished";
  return success;
}

int cuInit(unsigned flags) {
  const Lock lock(driver().mutex);
  Driver& all = driver();
  ++all.calls["cuInit"];
  if (const int code = to_fail("cuInit"); code != success) return code;
  if (flags != 0) return invalid_value;
  if (all.devices.empty()) return no_device;
  all.initialized = true;
  return success;
}

int cuDeviceGetCount(int* count) {
  const Lock lock(driver().mutex);
  const int code = enter("cuDeviceGetCount", false);
  *count = static_cast<int>(driver().devices.size());
  return code;
}

int cuDeviceGet(int* handle, int ordinal) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuDeviceGet", false); code != success) return code;
  if (ordinal < 0 || ordinal >= static_cast<int>(driver().devices.size())) return invalid_device;
  *handle = ordinal;
  return success;
}

int cuDeviceGetName(char* text, int length, int handle) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuDeviceGetName", false); code != success) return code;
  std::snprintf(text, static_cast<std::size_t>(length), "Fake %d", handle);
  return success;
}

int cuDeviceTotalMem_v2(std::size_t* bytes, int) {
  const Lock lock(driver().mutex);
  *bytes = driver().device_bytes;
  return enter("cuDeviceTotalMem_v2", false);
}

int cuDevicePrimaryCtxRetain(void** context, int handle) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuDevicePrimaryCtxRetain", false); code != success) return code;
  ++driver().devices.at(static_cast<std::size_t>(handle)).retained;
  *context = reinterpret_cast<void*>(static_cast<std::uintptr_t>(handle) + 1);
  return success;
}

int cuDevicePrimaryCtxRelease_v2(int handle) {
  const Lock lock(driver().mutex);
  const int code = enter("cuDevicePrimaryCtxRelease_v2", false);
  Device& device = driver().devices.at(static_cast<std::size_t>(handle));
  if (device.retained == 0) {
    violate("a context was released more often than retained");
    return invalid_context;
  }
  if (--device.retained == 0 && holds_anything(handle))
    violate("a context was released under what it holds");
  return code;
}

int cuCtxPushCurrent_v2(void* context) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuCtxPushCurrent_v2", false); code != success) return code;
  const int device = static_cast<int>(reinterpret_cast<std::uintptr_t>(context)) - 1;
  if (device < 0 || driver().devices.at(static_cast<std::size_t>(device)).retained == 0) {
    violate("a context was made current that nobody retains");
    return invalid_context;
  }
  current.devices.push_back(device);
  return success;
}

int cuCtxPopCurrent_v2(void** context) {
  const Lock lock(driver().mutex);
  const int code = enter("cuCtxPopCurrent_v2", true);
  if (!has_context()) return code;
  *context = reinterpret_cast<void*>(static_cast<std::uintptr_t>(current_device()) + 1);
  current.devices.pop_back();
  return code;
}

int cuCtxSynchronize() {
  Lock lock(driver().mutex);
  const int code = enter("cuCtxSynchronize", true);
  if (!has_context()) return code;
  driver().changed.wait(lock, [] { return is_idle(current_device()); });
  return code;
}

int cuMemAlloc_v2(Address* address, std::size_t bytes) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuMemAlloc_v2", true); code != success) return code;
  Driver& all = driver();
  Device& device = all.devices[static_cast<std::size_t>(current_device())];
  if (bytes == 0) return invalid_value;
  if (bytes > all.device_bytes - device.used_bytes) return out_of_memory;
  device.used_bytes += bytes;
  *address = all.next_address;
  // A gap behind it, so that whoever goes past the end is found out.
  all.next_address += (bytes / 512 + 2) * 512;
  all.allocations.emplace(*address, Allocation{current_device(), bytes});
  return success;
}

int cuMemFree_v2(Address address) {
  const Lock lock(driver().mutex);
  const int code = enter("cuMemFree_v2", true);
  if (!has_context()) return code;
  Driver& all = driver();
  const auto found = all.allocations.find(address);
  if (found == all.allocations.end()) {
    violate("memory of the device was freed that was not allocated");
    return invalid_value;
  }
  const std::size_t bytes = found->second.size;
  if (any_copy([&](const Operation& operation) { return operation.destination - address < bytes; }))
    violate("memory of the device was freed under a copy");
  all.devices[static_cast<std::size_t>(found->second.device)].used_bytes -= bytes;
  all.allocations.erase(found);
  return code;
}

int cuMemGetInfo_v2(std::size_t* free, std::size_t* total) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuMemGetInfo_v2", true); code != success) return code;
  *total = driver().device_bytes;
  *free = *total - driver().devices[static_cast<std::size_t>(current_device())].used_bytes;
  return success;
}

int cuMemHostRegister_v2(void* pointer, std::size_t bytes, unsigned flags) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuMemHostRegister_v2", true); code != success) return code;
  Driver& all = driver();
  const auto begin = reinterpret_cast<std::uintptr_t>(pointer);
  if (begin % page_bytes != 0 || bytes % page_bytes != 0 || !is_mapped(begin, bytes)) {
    violate("memory of the host was registered that is no mapped pages");
    return invalid_value;
  }
  for (const auto& [other, registration] : all.registrations)
    if (begin < other + registration.bytes && other < begin + bytes) return already_registered;
  all.registrations[begin] = {current_device(), (flags & 1) != 0, bytes};
  all.registered_bytes += bytes;
  all.registered_peak_bytes = std::max(all.registered_peak_bytes, all.registered_bytes);
  return success;
}

int cuMemHostUnregister(void* pointer) {
  const Lock lock(driver().mutex);
  const int code = enter("cuMemHostUnregister", true);
  if (!has_context()) return code;
  Driver& all = driver();
  const auto found = all.registrations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == all.registrations.end()) {
    violate("memory of the host was unregistered that was not registered");
    return not_registered;
  }
  const std::uintptr_t begin = found->first;
  const std::size_t bytes = found->second.bytes;
  if (!is_mapped(begin, bytes)) violate("memory of the host was unmapped while registered");
  if (any_copy([&](const Operation& operation) {
        return reinterpret_cast<std::uintptr_t>(operation.source) - begin < bytes;
      }))
    violate("memory of the host was unregistered under a copy");
  all.registered_bytes -= bytes;
  all.registrations.erase(found);
  return code;
}

int cuMemcpyHtoDAsync_v2(Address destination, const void* source, std::size_t bytes,
                         Stream* stream) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuMemcpyHtoDAsync_v2", true); code != success) return code;
  if (!is_known(driver().streams, stream, "cuMemcpyHtoDAsync_v2")) return invalid_handle;
  const Allocation* const allocation = allocation_of(destination, bytes);
  if (allocation == nullptr || bytes == 0) {
    violate("a copy ends outside the device's memory");
    return invalid_value;
  }
  if (!is_current(stream->device) || !is_current(allocation->device))
    violate("a copy of one device in the context of another");
  if (!is_registered(reinterpret_cast<std::uintptr_t>(source), bytes)) {
    violate("a copy begins outside registered memory");
    return invalid_value;
  }
  const auto* const first = static_cast<const std::byte*>(source);
  stream->queue.push_back({nullptr, destination, first, bytes, {first, first + bytes}});
  driver().changed.notify_all();
  return success;
}

int cuStreamCreate(Stream** stream, unsigned) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuStreamCreate", true); code != success) return code;
  auto made = std::make_unique<Stream>();
  made->device = current_device();
  made->thread = std::thread(serve, made.get());
  *stream = made.get();
  driver().streams[*stream] = std::move(made);
  return success;
}

int cuStreamDestroy_v2(Stream* stream) {
  Lock lock(driver().mutex);
  const int code = enter("cuStreamDestroy_v2", true);
  if (!has_context()) return code;
  if (!is_known(driver().streams, stream, "cuStreamDestroy_v2")) return invalid_handle;
  if (!stream->queue.empty()) violate("a stream was destroyed under its work");
  close(lock, stream);
  return code;
}

int cuStreamSynchronize(Stream* stream) {
  Lock lock(driver().mutex);
  const int code = enter("cuStreamSynchronize", true);
  if (!has_context()) return code;
  if (!is_known(driver().streams, stream, "cuStreamSynchronize")) return invalid_handle;
  driver().changed.wait(lock, [stream] { return stream->queue.empty(); });
  return code;
}

int cuEventCreate(Event** event, unsigned) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuEventCreate", true); code != success) return code;
  auto made = std::make_unique<Event>(Event{current_device()});
  *event = made.get();
  driver().events[*event] = std::move(made);
  return success;
}

int cuEventRecord(Event* event, Stream* stream) {
  const Lock lock(driver().mutex);
  if (const int code = enter("cuEventRecord", true); code != success) return code;
  if (!is_known(driver().events, event, "cuEventRecord") ||
      !is_known(driver().streams, stream, "cuEventRecord"))
    return invalid_handle;
  if (event->device != stream->device) violate("an event of one device on the stream of another");
  event->recorded = true;
  ++event->pending;
  stream->queue.push_back({event, 0, nullptr, 0, {}});
  driver().changed.notify_all();
  return success;
}

int cuEventSynchronize(Event* event) {
  Lock lock(driver().mutex);
  if (const int code = enter("cuEventSynchronize", false); code != success) return code;
  if (!is_known(driver().events, event, "cuEventSynchronize")) return invalid_handle;
  if (!event->recorded) violate("an event was waited for that was not recorded");
  driver().changed.wait(lock, [event] { return event->pending == 0; });
  return driver().devices[static_cast<std::size_t>(event->device)].sticky;
}

int cuEventDestroy_v2(Event* event) {
  Lock lock(driver().mutex);
  const int code = enter("cuEventDestroy_v2", true);
  if (!has_context()) return code;
  if (!is_known(driver().events, event, "cuEventDestroy_v2")) return invalid_handle;
  if (event->pending != 0) {
    violate("an event was destroyed before it was reached");
    driver().changed.wait(lock, [event] { return event->pending == 0; });
  }
  driver().events.erase(event);
  return code;
}
}
