// The chunk digest: CRC32C of the four contiguous quarters, each big-endian, side by side.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace stoker {

using Digest = std::array<std::uint8_t, 16>;

// A quarter is ceil(n / 4) bytes rounded up to 8; the last ones may be short or empty.
Digest digest(std::span<const std::byte> bytes);

// The two ways that `digest` chooses from; tests hold them equal.
Digest digest_by_table(std::span<const std::byte> bytes);
bool has_hardware_digest();
Digest digest_by_hardware(std::span<const std::byte> bytes);

std::string hex(const Digest& digest);

}  // namespace stoker
