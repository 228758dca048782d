#include "module_device.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <vector>

#include "device.h"
#include "device_target.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using stoker::Device;
using stoker::DeviceMemory;
using stoker::DeviceTarget;
using stoker::PinnedRange;
using stoker::Pool;
using stoker::Progress;
using stoker::Region;
using Released = nb::call_guard<nb::gil_scoped_release>;

// An array whose owner is the Python object, so that the memory lives as long as any tensor of it.
nb::object dlpack(nb::handle_t<DeviceMemory> self, const nb::kwargs& options) {
  const DeviceMemory& memory = nb::cast<const DeviceMemory&>(self);
  nb::ndarray<nb::array_api, std::uint8_t> array(
      reinterpret_cast<void*>(memory.address()), {memory.size()}, self, {},
      nb::dtype<std::uint8_t>(), nb::device::cuda::value, memory.device()->ordinal());
  return array.cast(nb::rv_policy::reference).attr("__dlpack__")(**options);
}

std::shared_ptr<DeviceMemory> allocate(std::shared_ptr<Device> device, std::size_t byte_count) {
  const nb::gil_scoped_release released;
  return {new DeviceMemory(std::move(device), byte_count), ReleasedDelete()};
}

void upload(std::shared_ptr<DeviceMemory> memory, std::shared_ptr<PinnedRange> host,
            std::vector<std::size_t> chunks, std::shared_ptr<Progress> progress) {
  DeviceTarget(std::move(memory), std::move(host), std::move(chunks), std::move(progress)).upload();
}

}  // namespace

void bind_device(nb::module_& module) {
  const char* const driver_path = stoker::CudaDriver::default_path;
  module.def("device_count", &stoker::device_count, "driver_path"_a = driver_path, Released());
  nb::class_<Device>(module, "Device")
      .def(nb::init<int, const std::string&>(), "ordinal"_a, "driver_path"_a = driver_path,
           Released())
      .def_prop_ro("ordinal", &Device::ordinal)
      .def_prop_ro("name", &Device::name)
      .def_prop_ro("total_bytes", &Device::total_bytes)
      .def_prop_ro("free_bytes", &Device::free_bytes);
  nb::class_<DeviceMemory>(module, "DeviceMemory")
      .def(nb::new_(&allocate), "device"_a, "byte_count"_a)
      .def("__len__", &DeviceMemory::size)
      .def_prop_ro("device", &DeviceMemory::device)
      .def_prop_ro("address", &DeviceMemory::address)
      .def("upload", &upload, "host"_a, "chunks"_a, "progress"_a, Released())
      .def("__dlpack__", &dlpack, "options"_a)
      .def("__dlpack_device__", [](const DeviceMemory& memory) {
        return nb::make_tuple(nb::device::cuda::value, memory.device()->ordinal());
      });
  nb::class_<PinnedRange>(module, "PinnedRange")
      .def(nb::init<std::shared_ptr<Device>, std::shared_ptr<Pool>>(), "device"_a, "memory"_a,
           Released())
      .def(nb::init<std::shared_ptr<Device>, std::shared_ptr<Region>>(), "device"_a, "memory"_a,
           Released())
      .def_prop_ro("chunk_count", &PinnedRange::chunk_count);
}
