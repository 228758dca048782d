#include "cuda_driver.h"

#include <dlfcn.h>

#include "error.h"

namespace stoker {
namespace {

void* open_library(const std::string& path) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const char* const reason = ::dlerror();
  throw DeviceError(cuda::library_not_found, "dlopen",
                    "expected the CUDA driver's library, found none: " +
                        std::string(reason != nullptr ? reason : path.c_str()));
}

}  // namespace

CudaDriver::CudaDriver(const std::string& path)
    : path_(path),
      library_(open_library(path)),
      get_error_name(*this, "cuGetErrorName"),
      get_error_string(*this, "cuGetErrorString"),
      init(*this, "cuInit"),
      device_get_count(*this, "cuDeviceGetCount"),
      device_get(*this, "cuDeviceGet"),
      device_get_name(*this, "cuDeviceGetName"),
      device_total_mem(*this, "cuDeviceTotalMem_v2"),
      primary_context_retain(*this, "cuDevicePrimaryCtxRetain"),
      primary_context_release(*this, "cuDevicePrimaryCtxRelease_v2"),
      context_push_current(*this, "cuCtxPushCurrent_v2"),
      context_pop_current(*this, "cuCtxPopCurrent_v2"),
      context_synchronize(*this, "cuCtxSynchronize"),
      mem_alloc(*this, "cuMemAlloc_v2"),
      mem_free(*this, "cuMemFree_v2"),
      mem_get_info(*this, "cuMemGetInfo_v2"),
      mem_host_register(*this, "cuMemHostRegister_v2"),
      mem_host_unregister(*this, "cuMemHostUnregister"),
      memcpy_host_to_device_async(*this, "cuMemcpyHtoDAsync_v2"),
      stream_create(*this, "cuStreamCreate"),
      stream_destroy(*this, "cuStreamDestroy_v2"),
      stream_synchronize(*this, "cuStreamSynchronize"),
      event_create(*this, "cuEventCreate"),
      event_record(*this, "cuEventRecord"),
      event_synchronize(*this, "cuEventSynchronize"),
      event_destroy(*this, "cuEventDestroy_v2") {
  init(0);
}

void* CudaDriver::symbol(const char* name) const {
  if (void* found = ::dlsym(library_, name); found != nullptr) return found;
  throw DeviceError(cuda::symbol_not_found, "dlsym",
                    "expected the function " + std::string(name) + " in " + path_ +
                        ", found none; is its driver too old?");
}

void CudaDriver::raise(CudaResult result, const char* name) const {
  const char* code = nullptr;
  const char* text = nullptr;
  if (get_error_name.attempt(result, &code) != cuda::success || code == nullptr)
    code = "an unknown error";
  if (get_error_string.attempt(result, &text) != cuda::success || text == nullptr) text = "";
  throw DeviceError(result, name,
                    std::string(code) + " (" + std::to_string(result) + ") " + std::string(text));
}

int device_count(const std::string& path) {
  int count = 0;
  try {
    CudaDriver(path).device_get_count(&count);
  } catch (const DeviceError& error) {
    if (error.code != cuda::library_not_found && error.code != cuda::no_device) throw;
  }
  return count;
}

}  // namespace stoker
