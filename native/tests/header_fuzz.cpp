// Any bytes either parse into a header whose tensors tile the data, or raise a HeaderError.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "error.h"
#include "header.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const stoker::Header header = stoker::parse_header(std::as_bytes(std::span(data, size)), size);
    std::uint64_t expected = 0;
    for (const stoker::Tensor& tensor : header.tensors) {
      if (tensor.begin != expected || tensor.end < tensor.begin) std::abort();
      expected = tensor.end;
    }
    if (expected > size) std::abort();
  } catch (const stoker::HeaderError& error) {
    if (error.kind.empty() || error.offset > size + 8) std::abort();
  }
  return 0;
}
