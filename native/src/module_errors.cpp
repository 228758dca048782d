#include "module_errors.h"

#include <nanobind/stl/string.h>

#include <exception>
#include <string>

#include "error.h"
#include "module_text.h"

namespace nb = nanobind;

namespace {

// Made once, when the module is; they live as long as the process.
PyObject* header_error = nullptr;
PyObject* chunk_error = nullptr;
PyObject* cancelled_error = nullptr;
PyObject* device_error = nullptr;
PyObject* device_out_of_memory = nullptr;

void make_exception(nb::module_& module, const char* name, PyObject* base, PyObject*& slot) {
  const std::string qualified = std::string("stoker.native.") + name;
  slot = PyErr_NewException(qualified.c_str(), base, nullptr);
  if (slot == nullptr) throw nb::python_error();
  module.attr(name) = nb::borrow(slot);
}

void raise_system_error(const stoker::SystemError& error) {
  const nb::object filename = error.path.empty() ? nb::none() : decode_path(error.path);
  const nb::object value =
      nb::borrow(PyExc_OSError)(error.code, decode_text(error.what()), filename);
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(value.ptr())), value.ptr());
}

void raise_header_error(const stoker::HeaderError& error) {
  const nb::object value = nb::borrow(header_error)(decode_text(error.what()));
  value.attr("kind") = error.kind;
  value.attr("offset") = error.offset;
  PyErr_SetObject(header_error, value.ptr());
}

void raise_chunk_error(const stoker::ChunkError& error) {
  const nb::object value = nb::borrow(chunk_error)(decode_text(error.what()));
  value.attr("ordinal") = error.ordinal;
  value.attr("path") = decode_path(error.path);
  value.attr("offset") = error.offset;
  value.attr("expected") = error.expected;
  value.attr("found") = error.found;
  PyErr_SetObject(chunk_error, value.ptr());
}

void raise_device_error(const stoker::DeviceError& error) {
  PyObject* const type = error.is_out_of_memory() ? device_out_of_memory : device_error;
  const nb::object value = nb::borrow(type)(decode_text(error.what()));
  value.attr("code") = error.code;
  value.attr("call") = error.call;
  PyErr_SetObject(type, value.ptr());
}

void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const stoker::SystemError& error) {
    raise_system_error(error);
  } catch (const stoker::HeaderError& error) {
    raise_header_error(error);
  } catch (const stoker::ChunkError& error) {
    raise_chunk_error(error);
  } catch (const stoker::Cancelled& error) {
    PyErr_SetString(cancelled_error, error.what());
  } catch (const stoker::DeviceError& error) {
    raise_device_error(error);
  } catch (const stoker::PoolExhausted& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  }
}

}  // namespace

void bind_errors(nb::module_& module) {
  make_exception(module, "HeaderError", PyExc_ValueError, header_error);
  make_exception(module, "ChunkError", PyExc_RuntimeError, chunk_error);
  make_exception(module, "Cancelled", PyExc_RuntimeError, cancelled_error);
  make_exception(module, "DeviceError", PyExc_RuntimeError, device_error);
  const nb::tuple bases = nb::make_tuple(nb::borrow(device_error), nb::borrow(PyExc_MemoryError));
  make_exception(module, "DeviceOutOfMemory", bases.ptr(), device_out_of_memory);
  nb::register_exception_translator(&translate);
}
