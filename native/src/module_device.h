// The Python face of the device stage.
#pragma once

#include <nanobind/nanobind.h>

// What ends by waiting for a device lets other Python threads go on meanwhile.
struct ReleasedDelete {
  template <typename T>
  void operator()(T* object) const {
    if (PyGILState_Check() == 0) {
      delete object;
    } else {
      const nanobind::gil_scoped_release released;
      delete object;
    }
  }
};

// Adds device_count, Device, PinnedRange and DeviceMemory; after Pool, Region and Progress.
void bind_device(nanobind::module_& module);
