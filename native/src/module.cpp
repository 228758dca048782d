// The Python face of the loader: conversions, the GIL and exceptions, nothing else.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <limits>

#include "chunk.h"
#include "device_target.h"
#include "digest.h"
#include "error.h"
#include "header.h"
#include "load.h"
#include "mapping.h"
#include "memory_target.h"
#include "module_device.h"
#include "module_errors.h"
#include "module_progress.h"
#include "module_text.h"
#include "pool.h"
#include "progress.h"
#include "region.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using stoker::Load;
using stoker::Mapping;
using stoker::Pool;
using stoker::Progress;
using stoker::ReadRequest;
using stoker::Region;
using Released = nb::call_guard<nb::gil_scoped_release>;

// The bytes of any contiguous buffer, held while they are used.
class Bytes {
 public:
  explicit Bytes(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  ~Bytes() { PyBuffer_Release(&view_); }

  std::span<const std::byte> span() const {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

// Whatever os.fspath accepts, as the bytes that the file system knows.
std::string path_of(nb::handle object) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(object.ptr(), &encoded) == 0) throw nb::python_error();
  const nb::bytes bytes = nb::steal<nb::bytes>(encoded);
  return {bytes.c_str(), bytes.size()};
}

stoker::Digest digest_of(const nb::bytes& bytes) {
  stoker::Digest digest{};
  if (bytes.size() != digest.size()) throw nb::value_error("expected digests of 16 bytes");
  std::memcpy(digest.data(), bytes.data(), digest.size());
  return digest;
}

nb::bytes bytes_of(const stoker::Digest& digest) { return nb::bytes(digest.data(), digest.size()); }

int fill_buffer(PyObject* self, Py_buffer* view, int flags, std::span<std::byte> bytes) {
  return PyBuffer_FillInfo(view, self, bytes.data(), static_cast<Py_ssize_t>(bytes.size()), 0,
                           flags);
}

template <typename T>
int get_buffer(PyObject* self, Py_buffer* view, int flags) {
  return fill_buffer(self, view, flags, nb::inst_ptr<T>(self)->bytes());
}

template <typename T>
PyType_Slot* buffer_slots() {
  static PyType_Slot slots[] = {
      {Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer<T>)},
      {0, nullptr},
  };
  return slots;
}

// A piece of memory that keeps its owner alive.
struct Piece {
  std::shared_ptr<const void> owner;
  std::span<std::byte> memory;
  std::span<std::byte> bytes() const { return memory; }
};

nb::object memory_view(std::shared_ptr<const void> owner, std::span<std::byte> memory) {
  const nb::object piece = nb::cast(Piece{std::move(owner), memory});
  PyObject* view = PyMemoryView_FromObject(piece.ptr());
  if (view == nullptr) throw nb::python_error();
  return nb::steal(view);
}

nb::bytes digest_buffer(nb::handle buffer) {
  const Bytes bytes(buffer);
  stoker::Digest digest{};
  {
    const nb::gil_scoped_release released;
    digest = stoker::digest(bytes.span());
  }
  return bytes_of(digest);
}

stoker::Header parse(nb::handle buffer, std::uint64_t file_bytes) {
  const Bytes bytes(buffer);
  const nb::gil_scoped_release released;
  return stoker::parse_header(bytes.span(), file_bytes);
}

nb::tuple shape_tuple(const std::vector<std::uint64_t>& shape) {
  nb::list list;
  for (const std::uint64_t dimension : shape) list.append(dimension);
  return nb::tuple(list);
}

nb::list parse_header(nb::handle buffer, std::uint64_t file_bytes) {
  const stoker::Header header = parse(buffer, file_bytes);
  nb::list tensors;
  for (const stoker::Tensor& tensor : header.tensors)
    tensors.append(nb::make_tuple(tensor.name, nb::str(tensor.dtype.data(), tensor.dtype.size()),
                                  shape_tuple(tensor.shape), tensor.begin, tensor.end));
  return tensors;
}

nb::dict parse_metadata(nb::handle buffer, std::uint64_t file_bytes) {
  const stoker::Header header = parse(buffer, file_bytes);
  nb::dict metadata;
  for (const auto& [key, value] : header.metadata)
    metadata[nb::str(key.data(), key.size())] = nb::str(value.data(), value.size());
  return metadata;
}

std::uint64_t header_bytes(nb::handle buffer, std::uint64_t file_bytes) {
  const Bytes bytes(buffer);
  return stoker::header_bytes(bytes.span(), file_bytes);
}

std::vector<std::optional<stoker::Digest>> expected_of(
    const std::vector<std::optional<nb::bytes>>& digests) {
  std::vector<std::optional<stoker::Digest>> expected;
  for (const std::optional<nb::bytes>& digest : digests)
    expected.push_back(digest ? std::optional(digest_of(*digest)) : std::nullopt);
  return expected;
}

std::shared_ptr<Load> load_into_pool(std::shared_ptr<Pool> pool, std::vector<std::size_t> chunks,
                                     const std::vector<std::size_t>& sizes,
                                     const std::vector<std::optional<nb::bytes>>& digests,
                                     std::shared_ptr<Progress> progress) {
  auto target =
      std::make_shared<stoker::PoolTarget>(std::move(pool), std::move(chunks), std::move(progress));
  return std::make_shared<Load>(std::move(target), sizes, expected_of(digests), true);
}

std::shared_ptr<Load> load_into_region(std::shared_ptr<Region> region,
                                       const std::vector<std::size_t>& sizes,
                                       const std::vector<std::optional<nb::bytes>>& digests,
                                       std::shared_ptr<Progress> progress, bool borrow) {
  auto target =
      std::make_shared<stoker::RegionTarget>(std::move(region), std::move(progress), borrow);
  return std::make_shared<Load>(std::move(target), sizes, expected_of(digests), false);
}

std::shared_ptr<Load> load_into_device(std::shared_ptr<stoker::DeviceMemory> memory,
                                       std::shared_ptr<stoker::PinnedRange> host,
                                       const std::vector<std::size_t>& sizes,
                                       const std::vector<std::optional<nb::bytes>>& digests,
                                       std::shared_ptr<Progress> progress,
                                       std::optional<std::vector<std::size_t>> chunks) {
  std::shared_ptr<stoker::Target> target(
      new stoker::DeviceTarget(std::move(memory), std::move(host), std::move(chunks),
                               std::move(progress)),
      ReleasedDelete());
  return std::make_shared<Load>(std::move(target), sizes, expected_of(digests), false);
}

nb::dict ways_of(const Load& load) {
  using stoker::Way;
  nb::dict ways;
  ways["direct_by_ring"] = load.count_of(Way::direct_by_ring);
  ways["direct"] = load.count_of(Way::direct);
  ways["buffered"] = load.count_of(Way::buffered);
  ways["cached"] = load.count_of(Way::cached);
  ways["borrowed"] = load.count_of(Way::borrowed);
  return ways;
}

void bind_memory(nb::module_& module) {
  nb::class_<Piece>(module, "_Piece", nb::type_slots(buffer_slots<Piece>()));
  nb::class_<Region>(module, "Region", nb::type_slots(buffer_slots<Region>()))
      .def(nb::init<std::size_t, bool>(), "byte_count"_a, "huge_pages"_a = true)
      .def("__len__", [](const Region& region) { return region.bytes().size(); })
      .def_prop_ro("huge_pages", &Region::has_huge_pages)
      .def("discard", &Region::discard, "offset"_a, "byte_count"_a, Released());
  nb::class_<Mapping>(module, "Mapping", nb::type_slots(buffer_slots<Mapping>()))
      .def(nb::init<std::size_t>(), "byte_count"_a)
      .def("map", &Mapping::map, "pool_fd"_a, "chunks"_a, Released())
      .def("__len__", [](const Mapping& mapping) { return mapping.bytes().size(); })
      .def("populate", &Mapping::populate, Released());
  nb::class_<Pool>(module, "Pool")
      .def(nb::init<std::size_t, std::optional<int>>(), "capacity_bytes"_a,
           "memory_file"_a = nb::none())
      .def_prop_ro("fd", &Pool::fd)
      .def_prop_ro("reader_fd", &Pool::reader_fd)
      .def_prop_ro("chunk_count", &Pool::chunk_count)
      .def_prop_ro("capacity_bytes",
                   [](const Pool& pool) { return pool.chunk_count() * stoker::chunk_bytes; })
      .def_prop_ro("free_count", &Pool::free_count)
      .def_prop_ro("huge_pages", &Pool::has_huge_pages)
      .def_prop_ro("prefaulted_bytes", &Pool::prefaulted_bytes)
      .def_prop_ro("registered", [](Pool& pool) { return pool.lanes().has_registered(); })
      .def("allocate", &Pool::allocate, "count"_a)
      .def("claim", &Pool::claim, "chunks"_a)
      .def("release", &Pool::release, "chunks"_a)
      .def("prefault", &Pool::prefault, "threads"_a = 1, Released())
      .def(
          "chunk",
          [](std::shared_ptr<Pool> pool, std::size_t index) {
            const std::span<std::byte> memory = pool->chunk(index);
            return memory_view(std::move(pool), memory);
          },
          "index"_a);
}

void bind_load(nb::module_& module) {
  nb::class_<ReadRequest>(module, "ReadRequest")
      .def(
          "__init__",
          [](ReadRequest* self, nb::handle path, std::uint64_t file_offset, std::size_t ordinal) {
            new (self) ReadRequest{path_of(path), file_offset, ordinal};
          },
          "path"_a, "file_offset"_a, "ordinal"_a)
      .def_prop_ro("path", [](const ReadRequest& request) { return decode_path(request.path); })
      .def_ro("file_offset", &ReadRequest::file_offset)
      .def_ro("ordinal", &ReadRequest::ordinal);
  nb::class_<Load>(module, "Load")
      .def(nb::new_(&load_into_pool), "pool"_a, "chunks"_a, "sizes"_a, "digests"_a, "progress"_a)
      .def_static("into_region", &load_into_region, "region"_a, "sizes"_a, "digests"_a,
                  "progress"_a, "borrow"_a)
      .def_static("into_device", &load_into_device, "memory"_a, "host"_a, "sizes"_a, "digests"_a,
                  "progress"_a, "chunks"_a = nb::none())
      .def("read", &Load::read, "requests"_a, "threads"_a = 4, "direct"_a = true,
           "deadline"_a = std::numeric_limits<double>::infinity(), Released())
      .def(
          "fill",
          [](Load& load, std::size_t ordinal) {
            std::span<std::byte> memory;
            {
              const nb::gil_scoped_release released;
              memory = load.fill(ordinal);
            }
            return memory_view(load.target(), memory);
          },
          "ordinal"_a)
      .def(
          "commit",
          [](Load& load, std::size_t ordinal) {
            stoker::Digest digest{};
            {
              const nb::gil_scoped_release released;
              digest = load.commit(ordinal);
            }
            return bytes_of(digest);
          },
          "ordinal"_a)
      .def("abandon", &Load::abandon, "ordinal"_a)
      .def(
          "write",
          [](const Load& load, std::size_t ordinal, nb::handle path) {
            const std::string name = path_of(path);
            const nb::gil_scoped_release released;
            load.write(ordinal, name);
          },
          "ordinal"_a, "path"_a)
      .def(
          "digest",
          [](const Load& load, std::size_t ordinal) -> std::optional<nb::bytes> {
            const std::optional<stoker::Digest> digest = load.digest_of(ordinal);
            return digest ? std::optional(bytes_of(*digest)) : std::nullopt;
          },
          "ordinal"_a)
      .def("finish", &Load::finish, Released())
      .def_prop_ro("ways", &ways_of)
      .def("cancel", &Load::cancel);
}

}  // namespace

NB_MODULE(_core, module) {
  // Tensors and chunks may rightly outlive the interpreter's last look at them.
  nb::set_leak_warnings(false);
  bind_errors(module);

  module.attr("CHUNK_BYTES") = stoker::chunk_bytes;
  module.def("digest", &digest_buffer, "buffer"_a);
  module.def("header_bytes", &header_bytes, "buffer"_a, "file_bytes"_a);
  module.def("parse_header", &parse_header, "buffer"_a, "file_bytes"_a);
  module.def("has_io_uring", [] { return stoker::Ring::make() != nullptr; });
  module.def("parse_metadata", &parse_metadata, "buffer"_a, "file_bytes"_a);
  bind_memory(module);
  bind_progress(module);
  bind_device(module);
  bind_load(module);
}
