// The safetensors header: eight bytes of length, then a JSON object, then the data section.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stoker {

inline constexpr std::uint64_t header_json_bytes_maximum = 100'000'000;
inline constexpr std::size_t tensors_maximum = 200'000;
inline constexpr std::size_t rank_maximum = 64;

struct Tensor {
  std::string name;
  std::string_view dtype;  // one of a static table
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0;  // from the start of the data section
  std::uint64_t end = 0;
};

struct Header {
  std::vector<Tensor> tensors;  // sorted by begin, without hole or overlap
  std::vector<std::pair<std::string, std::string>> metadata;
};

// Bytes before the data section (8 + the JSON's length), from the file's first eight bytes.
std::uint64_t header_bytes(std::span<const std::byte> start, std::uint64_t file_bytes);

// `start` holds at least the whole header; `file_bytes` is the size of the whole file.
Header parse_header(std::span<const std::byte> start, std::uint64_t file_bytes);

}  // namespace stoker
