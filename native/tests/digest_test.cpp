#include "digest.h"

#include <cstring>
#include <random>
#include <vector>

#include "check.h"

namespace {

std::vector<std::byte> random_bytes(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

std::uint32_t plain_crc32c(std::span<const std::byte> bytes) {
  std::uint32_t crc = ~0U;
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<std::uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78U : 0U);
  }
  return ~crc;
}

}  // namespace

TEST(a_digest_is_the_known_checksum_of_its_first_quarter) {
  const char text[] = "123456789";
  std::vector<std::byte> bytes(36);
  std::memcpy(bytes.data(), text, 9);
  // Quarters of 16 bytes: 16, 16, 4 and none.
  const stoker::Digest digest = stoker::digest(bytes);
  const std::uint32_t first = plain_crc32c(std::span(bytes).first(16));
  CHECK(plain_crc32c(std::span(bytes).first(9)) == 0xE3069283U);
  CHECK(digest[0] == (first >> 24) && digest[3] == (first & 0xFF));
  CHECK(digest[12] == 0 && digest[13] == 0 && digest[14] == 0 && digest[15] == 0);
}

TEST(hardware_and_table_agree_on_every_length_and_alignment) {
  if (!stoker::has_hardware_digest()) return;
  const std::vector<std::byte> bytes = random_bytes(5000, 1);
  for (std::size_t length = 0; length < 400; ++length)
    for (std::size_t begin = 0; begin < 9; ++begin) {
      const std::span<const std::byte> part = std::span(bytes).subspan(begin, length);
      CHECK(stoker::digest_by_hardware(part) == stoker::digest_by_table(part));
    }
  CHECK(stoker::digest_by_hardware(bytes) == stoker::digest_by_table(bytes));
}

TEST(one_changed_bit_changes_the_digest) {
  std::vector<std::byte> bytes = random_bytes(100'003, 2);
  const stoker::Digest before = stoker::digest(bytes);
  for (const std::size_t at : {std::size_t{0}, std::size_t{50'000}, std::size_t{100'002}}) {
    bytes[at] ^= std::byte{1};
    CHECK(stoker::digest(bytes) != before);
    bytes[at] ^= std::byte{1};
  }
  CHECK(stoker::digest(bytes) == before);
}

TEST(hex_has_two_digits_for_each_byte) {
  CHECK(stoker::hex({0x00, 0xFF, 0x1A}) == "00ff1a00000000000000000000000000");
}
