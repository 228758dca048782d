#include "header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>

#include "error.h"
#include "json.h"

namespace stoker {
namespace {

constexpr std::size_t length_bytes = 8;

struct Dtype {
  std::string_view name;
  std::uint64_t bits;
};

constexpr std::array<Dtype, 22> dtypes{{
    {"F32", 32},    {"BF16", 16},       {"F16", 16},        {"I64", 64},    {"I32", 32},
    {"U8", 8},      {"I8", 8},          {"BOOL", 8},        {"F64", 64},    {"I16", 16},
    {"U16", 16},    {"U32", 32},        {"U64", 64},        {"C64", 64},    {"F8_E4M3", 8},
    {"F8_E5M2", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F8_E8M0", 8}, {"F6_E2M3", 6},
    {"F6_E3M2", 6}, {"F4", 4},
}};

class Parser {
 public:
  Parser(std::string_view text, std::uint64_t data_bytes)
      : json_(text, length_bytes),
        data_bytes_(data_bytes),
        data_offset_(length_bytes + text.size()) {}

  Header parse() {
    json_.expect('{');
    if (!json_.accept('}')) {
      do {
        entry();
      } while (json_.accept(','));
      json_.expect('}');
    }
    json_.expect_end();
    refuse_duplicates(header_.tensors.size(), [this](std::size_t index) -> const std::string& {
      return header_.tensors[index].name;
    });
    refuse_duplicates(header_.metadata.size(), [this](std::size_t index) -> const std::string& {
      return header_.metadata[index].first;
    });
    check_layout();
    return std::move(header_);
  }

 private:
  void entry() {
    std::string name = json_.string();
    json_.expect(':');
    if (name == "__metadata__") {
      if (has_metadata_) json_.fail("duplicate_key", "expected one __metadata__, found two");
      has_metadata_ = true;
      metadata();
      return;
    }
    if (header_.tensors.size() == tensors_maximum)
      json_.fail("too_many_tensors", "expected at most " + std::to_string(tensors_maximum) +
                                         " tensors in the header, found more");
    tensor(std::move(name));
  }

  void metadata() {
    if (json_.accept_null()) return;
    json_.expect('{');
    if (json_.accept('}')) return;
    do {
      if (header_.metadata.size() == tensors_maximum)
        json_.fail("too_many_tensors", "expected at most " + std::to_string(tensors_maximum) +
                                           " metadata entries, found more");
      std::string key = json_.string();
      json_.expect(':');
      header_.metadata.emplace_back(std::move(key), json_.string());
    } while (json_.accept(','));
    json_.expect('}');
  }

  void tensor(std::string name) {
    Tensor tensor;
    tensor.name = std::move(name);
    std::uint64_t bits = 0;
    unsigned seen = 0;
    json_.expect('{');
    do {
      const std::string field = json_.string();
      json_.expect(':');
      if (field == "dtype") {
        mark(seen, 1);
        const Dtype& dtype = dtype_field();
        tensor.dtype = dtype.name;
        bits = dtype.bits;
      } else if (field == "shape") {
        mark(seen, 2);
        tensor.shape = shape_field();
      } else if (field == "data_offsets") {
        mark(seen, 4);
        json_.expect('[');
        tensor.begin = json_.integer();
        json_.expect(',');
        tensor.end = json_.integer();
        json_.expect(']');
      } else {
        json_.fail("field", "expected dtype, shape or data_offsets in a tensor's entry");
      }
    } while (json_.accept(','));
    json_.expect('}');
    if (seen != 7) json_.fail("field", "expected dtype, shape and data_offsets in every entry");
    check_size(tensor, bits);
    header_.tensors.push_back(std::move(tensor));
  }

  void mark(unsigned& seen, unsigned bit) {
    if ((seen & bit) != 0) json_.fail("duplicate_key", "expected each field of a tensor once");
    seen |= bit;
  }

  const Dtype& dtype_field() {
    const std::string name = json_.string();
    const auto found = std::find_if(dtypes.begin(), dtypes.end(),
                                    [&name](const Dtype& dtype) { return dtype.name == name; });
    if (found == dtypes.end()) json_.fail("dtype", "expected a dtype of safetensors");
    return *found;
  }

  std::vector<std::uint64_t> shape_field() {
    std::vector<std::uint64_t> shape;
    json_.expect('[');
    if (json_.accept(']')) return shape;
    do {
      if (shape.size() == rank_maximum)
        json_.fail("shape", "expected at most " + std::to_string(rank_maximum) + " dimensions");
      shape.push_back(json_.integer());
    } while (json_.accept(','));
    json_.expect(']');
    return shape;
  }

  void check_size(const Tensor& tensor, std::uint64_t bits) {
    std::uint64_t total = bits;
    for (const std::uint64_t dimension : tensor.shape)
      if (__builtin_mul_overflow(total, dimension, &total))
        json_.fail("shape", "expected a shape of fewer than 2^64 bits");
    if (total % 8 != 0) json_.fail("shape", "expected a tensor of whole bytes");
    if (tensor.end < tensor.begin) json_.fail("offsets", "expected data_offsets in rising order");
    if (tensor.end - tensor.begin != total / 8)
      json_.fail("offsets", "expected data_offsets " + std::to_string(total / 8) +
                                " bytes apart by dtype and shape, found " +
                                std::to_string(tensor.end - tensor.begin));
    if (tensor.end > data_bytes_)
      json_.fail("beyond_file", "expected data_offsets within the data section of " +
                                    std::to_string(data_bytes_) + " bytes, found " +
                                    std::to_string(tensor.end));
  }

  // Sorted by hash first: comparing long names with a common prefix is what would cost.
  template <typename NameAt>
  void refuse_duplicates(std::size_t count, const NameAt& name_at) {
    std::vector<std::pair<std::size_t, std::size_t>> keys;
    keys.reserve(count);
    for (std::size_t index = 0; index < count; ++index)
      keys.emplace_back(std::hash<std::string_view>{}(name_at(index)), index);
    std::sort(keys.begin(), keys.end(), [&name_at](const auto& left, const auto& right) {
      if (left.first != right.first) return left.first < right.first;
      return name_at(left.second) < name_at(right.second);
    });
    for (std::size_t index = 1; index < count; ++index)
      if (keys[index].first == keys[index - 1].first &&
          name_at(keys[index].second) == name_at(keys[index - 1].second))
        json_.fail("duplicate_key", "expected every name once, found one twice");
  }

  void check_layout() {
    auto& tensors = header_.tensors;
    const auto before = [](const Tensor& left, const Tensor& right) {
      return left.begin != right.begin ? left.begin < right.begin : left.end < right.end;
    };
    if (!std::is_sorted(tensors.begin(), tensors.end(), before))
      std::sort(tensors.begin(), tensors.end(), before);
    std::uint64_t expected = 0;
    for (const Tensor& tensor : tensors) {
      if (tensor.begin != expected) {
        const bool hole = tensor.begin > expected;
        throw HeaderError(hole ? "hole" : "overlap",
                          data_offset_ + std::min(expected, tensor.begin),
                          "expected the next tensor at data offset " + std::to_string(expected) +
                              ", found it at " + std::to_string(tensor.begin));
      }
      expected = tensor.end;
    }
    if (expected != data_bytes_)
      throw HeaderError("trailing_bytes", data_offset_ + expected,
                        "expected the data section to end with its last tensor, found " +
                            std::to_string(data_bytes_ - expected) + " bytes more");
  }

  Json json_;
  Header header_;
  bool has_metadata_ = false;
  std::uint64_t data_bytes_;
  std::uint64_t data_offset_;
};

}  // namespace

std::uint64_t header_bytes(std::span<const std::byte> start, std::uint64_t file_bytes) {
  if (file_bytes < length_bytes || start.size() < length_bytes)
    throw HeaderError("short_file", std::min<std::uint64_t>(file_bytes, start.size()),
                      "expected a file of at least 8 bytes");
  std::uint64_t json_bytes = 0;
  for (std::size_t index = length_bytes; index-- > 0;)
    json_bytes = (json_bytes << 8) | std::to_integer<std::uint64_t>(start[index]);
  if (json_bytes > header_json_bytes_maximum)
    throw HeaderError("header_length", 0,
                      "expected a header of at most " + std::to_string(header_json_bytes_maximum) +
                          " bytes, found " + std::to_string(json_bytes));
  if (json_bytes > file_bytes - length_bytes)
    throw HeaderError("beyond_file", 0,
                      "expected the header of " + std::to_string(json_bytes) +
                          " bytes inside the file of " + std::to_string(file_bytes));
  return length_bytes + json_bytes;
}

Header parse_header(std::span<const std::byte> start, std::uint64_t file_bytes) {
  const std::uint64_t whole = header_bytes(start, file_bytes);
  if (start.size() < whole)
    throw HeaderError("truncated", start.size(),
                      "expected " + std::to_string(whole) + " bytes of header, found " +
                          std::to_string(start.size()));
  const std::string_view text(reinterpret_cast<const char*>(start.data()) + length_bytes,
                              static_cast<std::size_t>(whole) - length_bytes);
  return Parser(text, file_bytes - whole).parse();
}

}  // namespace stoker
