// The exceptions of the Python face.
#pragma once

#include <nanobind/nanobind.h>

// Adds HeaderError, ChunkError, Cancelled, DeviceError and DeviceOutOfMemory to the module, and
// maps ours to them and to OSError.
void bind_errors(nanobind::module_& module);
