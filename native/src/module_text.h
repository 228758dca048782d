// Text of the operating system and of errors as Python strings; neither need be valid UTF-8.
#pragma once

#include <nanobind/nanobind.h>

#include <string>

inline nanobind::object decode_path(const std::string& path) {
  return nanobind::steal(
      PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<Py_ssize_t>(path.size())));
}

inline nanobind::object decode_text(const std::string& text) {
  return nanobind::steal(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "replace"));
}
