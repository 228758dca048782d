#include "digest.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace stoker {
namespace {

static_assert(std::endian::native == std::endian::little, "lanes are read as little-endian words");

constexpr std::uint32_t polynomial = 0x82F63B78;  // Castagnoli, reflected
constexpr std::size_t lane_count = 4;
constexpr std::size_t word_bytes = 8;

using Tables = std::array<std::array<std::uint32_t, 256>, word_bytes>;

constexpr Tables make_tables() {
  Tables tables{};
  for (std::uint32_t index = 0; index < 256; ++index) {
    std::uint32_t crc = index;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? polynomial : 0);
    tables[0][index] = crc;
  }
  for (std::size_t slice = 1; slice < word_bytes; ++slice)
    for (std::size_t index = 0; index < 256; ++index) {
      const std::uint32_t before = tables[slice - 1][index];
      tables[slice][index] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  return tables;
}

constexpr Tables tables = make_tables();

struct Lanes {
  std::array<const std::byte*, lane_count> begin;
  std::array<std::size_t, lane_count> size;
  std::size_t common_bytes;  // whole words that every lane has
};

Lanes split(std::span<const std::byte> bytes) {
  const std::size_t total = bytes.size();
  const std::size_t quarter = (total / 4 + (total % 4 != 0) + 7) / 8 * 8;
  Lanes lanes{};
  std::size_t at = 0;
  for (std::size_t lane = 0; lane < lane_count; ++lane) {
    lanes.begin[lane] = bytes.data() + at;
    lanes.size[lane] = std::min(quarter, total - at);
    at += lanes.size[lane];
  }
  lanes.common_bytes = lanes.size[lane_count - 1] / word_bytes * word_bytes;
  return lanes;
}

Digest pack(const std::array<std::uint32_t, lane_count>& crcs) {
  Digest result{};
  for (std::size_t lane = 0; lane < lane_count; ++lane) {
    const std::uint32_t crc = ~crcs[lane];
    for (std::size_t byte = 0; byte < 4; ++byte)
      result[lane * 4 + byte] = static_cast<std::uint8_t>(crc >> (24 - 8 * byte));
  }
  return result;
}

std::uint64_t word_at(const std::byte* address) {
  std::uint64_t word;
  std::memcpy(&word, address, sizeof word);
  return word;
}

std::uint32_t step_byte(std::uint32_t crc, std::byte value) {
  return (crc >> 8) ^ tables[0][(crc ^ std::to_integer<std::uint32_t>(value)) & 0xFF];
}

std::uint32_t step_word(std::uint32_t crc, std::uint64_t word) {
  word ^= crc;
  std::uint32_t next = 0;
  for (std::size_t byte = 0; byte < word_bytes; ++byte)
    next ^= tables[word_bytes - 1 - byte][(word >> (8 * byte)) & 0xFF];
  return next;
}

}  // namespace

Digest digest_by_table(std::span<const std::byte> bytes) {
  const Lanes lanes = split(bytes);
  std::array<std::uint32_t, lane_count> crcs{~0U, ~0U, ~0U, ~0U};
  for (std::size_t lane = 0; lane < lane_count; ++lane) {
    const std::byte* data = lanes.begin[lane];
    std::size_t at = 0;
    for (; at + word_bytes <= lanes.size[lane]; at += word_bytes)
      crcs[lane] = step_word(crcs[lane], word_at(data + at));
    for (; at < lanes.size[lane]; ++at) crcs[lane] = step_byte(crcs[lane], data[at]);
  }
  return pack(crcs);
}

#if defined(__x86_64__)

bool has_hardware_digest() {
  static const bool present = __builtin_cpu_supports("sse4.2") != 0;
  return present;
}

// One instruction has a latency of three cycles and one may start in each, so the four lanes
// advance together.
__attribute__((target("sse4.2"))) Digest digest_by_hardware(std::span<const std::byte> bytes) {
  const Lanes lanes = split(bytes);
  std::uint64_t crc0 = 0xFFFFFFFF;
  std::uint64_t crc1 = 0xFFFFFFFF;
  std::uint64_t crc2 = 0xFFFFFFFF;
  std::uint64_t crc3 = 0xFFFFFFFF;
  for (std::size_t at = 0; at < lanes.common_bytes; at += word_bytes) {
    crc0 = _mm_crc32_u64(crc0, word_at(lanes.begin[0] + at));
    crc1 = _mm_crc32_u64(crc1, word_at(lanes.begin[1] + at));
    crc2 = _mm_crc32_u64(crc2, word_at(lanes.begin[2] + at));
    crc3 = _mm_crc32_u64(crc3, word_at(lanes.begin[3] + at));
  }
  std::array<std::uint64_t, lane_count> wide{crc0, crc1, crc2, crc3};
  std::array<std::uint32_t, lane_count> crcs{};
  for (std::size_t lane = 0; lane < lane_count; ++lane) {
    const std::byte* data = lanes.begin[lane];
    std::size_t at = lanes.common_bytes;
    for (; at + word_bytes <= lanes.size[lane]; at += word_bytes)
      wide[lane] = _mm_crc32_u64(wide[lane], word_at(data + at));
    std::uint32_t crc = static_cast<std::uint32_t>(wide[lane]);
    for (; at < lanes.size[lane]; ++at)
      crc = _mm_crc32_u8(crc, std::to_integer<unsigned char>(data[at]));
    crcs[lane] = crc;
  }
  return pack(crcs);
}

#else

bool has_hardware_digest() { return false; }

Digest digest_by_hardware(std::span<const std::byte> bytes) { return digest_by_table(bytes); }

#endif

Digest digest(std::span<const std::byte> bytes) {
  return has_hardware_digest() ? digest_by_hardware(bytes) : digest_by_table(bytes);
}

std::string hex(const Digest& digest) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(digest.size() * 2);
  for (const std::uint8_t byte : digest) {
    text.push_back(digits[byte >> 4]);
    text.push_back(digits[byte & 0xF]);
  }
  return text;
}

}  // namespace stoker
