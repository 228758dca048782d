// The functions of the CUDA driver that the loader calls, found in its library at run time.
#pragma once

#include <cstddef>
#include <string>

namespace stoker {

// What cuda.h calls CUresult, CUdevice, CUdeviceptr, CUcontext, CUstream and CUevent.
using CudaResult = int;
using CudaOrdinal = int;
using CudaAddress = unsigned long long;
using CudaContext = struct CUctx_st*;
using CudaStream = struct CUstream_st*;
using CudaEvent = struct CUevent_st*;

namespace cuda {

inline constexpr CudaResult success = 0;
inline constexpr CudaResult no_device = 100;
inline constexpr CudaResult symbol_not_found = 302;
inline constexpr CudaResult library_not_found = 303;
inline constexpr unsigned stream_non_blocking = 1;
inline constexpr unsigned event_blocking_sync = 1;
inline constexpr unsigned event_disable_timing = 2;
inline constexpr unsigned host_register_portable = 1;

}  // namespace cuda

class CudaDriver {
 public:
  static constexpr const char* default_path = "libcuda.so.1";

  // Raises DeviceError where the library, one of its functions or a driver of the kernel is
  // missing. The library stays loaded for as long as the process lives.
  explicit CudaDriver(const std::string& path = default_path);
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  // One function of the driver; to call it raises DeviceError when the driver refuses.
  template <typename... Arguments>
  class Function {
   public:
    Function(const CudaDriver& driver, const char* name)
        : driver_(driver),
          name_(name),
          function_(reinterpret_cast<CudaResult (*)(Arguments...)>(driver.symbol(name))) {}

    void operator()(Arguments... arguments) const {
      const CudaResult result = function_(arguments...);
      if (result != cuda::success) driver_.raise(result, name_);
    }
    // For destructors, and for whoever looks at the result.
    CudaResult attempt(Arguments... arguments) const noexcept { return function_(arguments...); }

   private:
    const CudaDriver& driver_;
    const char* name_;
    CudaResult (*function_)(Arguments...);
  };

 private:
  void* symbol(const char* name) const;
  [[noreturn]] void raise(CudaResult result, const char* name) const;

  std::string path_;
  void* library_;

 public:
  const Function<CudaResult, const char**> get_error_name;
  const Function<CudaResult, const char**> get_error_string;
  const Function<unsigned> init;
  const Function<int*> device_get_count;
  const Function<CudaOrdinal*, int> device_get;
  const Function<char*, int, CudaOrdinal> device_get_name;
  const Function<std::size_t*, CudaOrdinal> device_total_mem;
  const Function<CudaContext*, CudaOrdinal> primary_context_retain;
  const Function<CudaOrdinal> primary_context_release;
  const Function<CudaContext> context_push_current;
  const Function<CudaContext*> context_pop_current;
  const Function<> context_synchronize;
  const Function<CudaAddress*, std::size_t> mem_alloc;
  const Function<CudaAddress> mem_free;
  const Function<std::size_t*, std::size_t*> mem_get_info;
  const Function<void*, std::size_t, unsigned> mem_host_register;
  const Function<void*> mem_host_unregister;
  const Function<CudaAddress, const void*, std::size_t, CudaStream> memcpy_host_to_device_async;
  const Function<CudaStream*, unsigned> stream_create;
  const Function<CudaStream> stream_destroy;
  const Function<CudaStream> stream_synchronize;
  const Function<CudaEvent*, unsigned> event_create;
  const Function<CudaEvent, CudaStream> event_record;
  const Function<CudaEvent> event_synchronize;
  const Function<CudaEvent> event_destroy;
};

// How many devices the driver offers; none where there is no driver.
int device_count(const std::string& path = CudaDriver::default_path);

}  // namespace stoker
