// The sizes that the whole loader agrees on.
#pragma once

#include <cstddef>

namespace stoker {

inline constexpr std::size_t chunk_bytes = std::size_t{16} << 20;
inline constexpr std::size_t request_bytes = std::size_t{4} << 20;
// Chunks that one load asks the disk for at once: more than one, so that it never waits for us, and
// few, as each costs memory bandwidth that another could use.
inline constexpr unsigned device_turns = 2;
inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;
inline constexpr std::size_t page_bytes = 4096;

constexpr std::size_t chunks_for(std::size_t bytes) {
  return bytes / chunk_bytes + (bytes % chunk_bytes != 0);
}

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace stoker
