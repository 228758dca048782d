#include "module_progress.h"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>

#include "chunk.h"
#include "module_text.h"
#include "progress.h"

namespace nb = nanobind;
using namespace nb::literals;
using stoker::Progress;

namespace {

// Python handles signals between the waits, so that Ctrl-C ends one. Each wait is short: a signal
// that arrives just before it begins would not interrupt it, and nothing else would tell.
constexpr double kWaitSliceSeconds = 0.25;

template <typename Wait>
void wait_in_slices(Wait wait, double timeout_seconds, const std::string& wanted) {
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  const double deadline = now() + timeout_seconds;
  for (;;) {
    Progress::Wait result{};
    const double left = std::max(0.0, deadline - now());
    {
      const nb::gil_scoped_release released;
      result = wait(std::min(left, kWaitSliceSeconds));
    }
    if (result == Progress::Wait::reached || result == Progress::Wait::ended) return;
    if (result == Progress::Wait::interrupted || left > kWaitSliceSeconds) {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      continue;
    }
    const std::string message =
        "expected " + wanted + " within " + std::to_string(timeout_seconds) + " s";
    PyErr_SetString(PyExc_TimeoutError, message.c_str());
    throw nb::python_error();
  }
}

std::uint64_t wait_for(const Progress& progress, std::uint64_t watermark_bytes,
                       double timeout_seconds) {
  wait_in_slices([&](double slice) { return progress.wait(watermark_bytes, slice); },
                 timeout_seconds, std::to_string(watermark_bytes) + " bytes");
  return progress.watermark_bytes();
}

bool wait_for_range(const Progress& progress, std::uint64_t begin, std::uint64_t end,
                    double timeout_seconds) {
  if (begin > end || end > progress.total_bytes())
    throw nb::value_error("expected a range within the checkpoint");
  const std::size_t first = begin / stoker::chunk_bytes;
  const std::size_t last = begin == end ? first : stoker::chunks_for(end);
  wait_in_slices([&](double slice) { return progress.wait_for_chunks(first, last, slice); },
                 timeout_seconds, "bytes " + std::to_string(begin) + " to " + std::to_string(end));
  return progress.wait_for_chunks(first, last, 0) == Progress::Wait::reached;
}

const char* state_name(const Progress& progress) {
  switch (progress.state()) {
    case stoker::State::loading:
      return "loading";
    case stoker::State::complete:
      return "complete";
    case stoker::State::cancelled:
      return "cancelled";
    case stoker::State::failed:
      break;
  }
  return "failed";
}

}  // namespace

void bind_progress(nb::module_& module) {
  nb::class_<Progress>(module, "Progress")
      .def(nb::init<std::size_t, std::uint64_t>(), "chunk_count"_a, "total_bytes"_a)
      .def_static(
          "open",
          [](int fd) { return std::shared_ptr<Progress>(new Progress(Progress::open(fd))); },
          "fd"_a)
      .def_prop_ro("fd", &Progress::fd)
      .def_prop_ro("chunk_count", &Progress::chunk_count)
      .def_prop_ro("total_bytes", &Progress::total_bytes)
      .def_prop_ro("watermark_bytes", &Progress::watermark_bytes)
      .def_prop_ro("state", &state_name)
      .def_prop_ro("error", [](const Progress& progress) { return decode_text(progress.error()); })
      .def_prop_rw("fetch_seconds", &Progress::fetch_seconds, &Progress::set_fetch_seconds)
      .def_prop_rw("load_seconds", &Progress::load_seconds, &Progress::set_load_seconds)
      .def("is_ready", &Progress::is_ready, "ordinal"_a)
      .def("publish", &Progress::publish, "ordinal"_a)
      .def("complete", &Progress::complete)
      .def(
          "fail", [](Progress& progress, const std::string& message) { progress.fail(message); },
          "message"_a)
      .def("cancel", &Progress::cancel)
      .def("wait", &wait_for, "watermark_bytes"_a, "timeout_seconds"_a)
      .def("wait_for_range", &wait_for_range, "begin"_a, "end"_a, "timeout_seconds"_a);
}
