#include "pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <stdexcept>
#include <thread>

#include "check.h"
#include "chunk.h"
#include "error.h"
#include "mapping.h"

using stoker::chunk_bytes;

TEST(a_pool_gives_the_lowest_free_chunks_and_takes_them_back) {
  stoker::Pool pool(4 * chunk_bytes + 5);
  CHECK(pool.chunk_count() == 4 && pool.free_count() == 4);
  CHECK(pool.allocate(3) == std::vector<std::size_t>{0, 1, 2});
  pool.release({1});
  CHECK(pool.allocate(2) == std::vector<std::size_t>{1, 3});
  CHECK(pool.free_count() == 0);
}

TEST(a_pool_that_is_too_full_gives_nothing) {
  stoker::Pool pool(2 * chunk_bytes);
  pool.allocate(1);
  THROWN(stoker::PoolExhausted(0, 0), pool.allocate(2));
  CHECK(pool.free_count() == 1);
}

TEST(a_wrong_release_changes_nothing) {
  stoker::Pool pool(2 * chunk_bytes);
  pool.allocate(1);
  THROWN(std::invalid_argument(""), pool.release({0, 0}));
  THROWN(std::invalid_argument(""), pool.release({0, 1}));
  THROWN(std::invalid_argument(""), pool.release({7}));
  CHECK(pool.free_count() == 1);
  pool.release({0});
  THROWN(std::invalid_argument(""), pool.release({0}));
  THROWN(std::invalid_argument(""), stoker::Pool(chunk_bytes - 1));
}

TEST(the_memory_of_an_earlier_pool_is_taken_over) {
  const stoker::Descriptor held(::memfd_create("held", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  stoker::Pool(2 * chunk_bytes, held.get()).chunk(1)[7] = std::byte{42};
  stoker::Pool second(2 * chunk_bytes, held.get());
  CHECK(second.chunk(1)[7] == std::byte{42});
  second.claim({1});
  THROWN(std::invalid_argument(""), second.claim({0, 1}));
  CHECK(second.allocate(1) == std::vector<std::size_t>{0});
  CHECK(stoker::Pool(chunk_bytes, held.get()).chunk(0)[7] == std::byte{0});
}

TEST(prefaulting_keeps_what_is_written) {
  stoker::Pool pool(3 * chunk_bytes);
  pool.chunk(2)[5] = std::byte{7};
  pool.prefault(2);
  std::thread writer([&pool] {
    for (std::size_t at = 0; at < chunk_bytes; at += 64) pool.chunk(1)[at] = std::byte{9};
  });
  writer.join();
  while (pool.prefaulted_bytes() < 3 * chunk_bytes) ::usleep(1000);
  CHECK(pool.chunk(2)[5] == std::byte{7});
  bool kept = true;
  for (std::size_t at = 0; at < chunk_bytes; at += 64)
    kept = kept && pool.chunk(1)[at] == std::byte{9};
  CHECK(kept);
}

TEST(a_pool_may_die_while_it_is_prefaulted) {
  stoker::Pool pool(64 * chunk_bytes);
  pool.prefault(2);
}

TEST(a_mapping_lays_chunks_side_by_side_and_never_changes_the_pool) {
  stoker::Pool pool(4 * chunk_bytes);
  for (std::size_t index = 0; index < 4; ++index)
    pool.chunk(index)[0] = static_cast<std::byte>(index + 1);
  stoker::Mapping mapping(2 * chunk_bytes + 10);
  const std::span<std::byte> bytes = mapping.bytes();
  CHECK(bytes[0] == std::byte{0} && bytes[2 * chunk_bytes + 9] == std::byte{0});
  mapping.map(pool.reader_fd(), {2, 3, 0});
  mapping.populate();
  CHECK(bytes.size() == 2 * chunk_bytes + 10);
  CHECK(bytes[0] == std::byte{3} && bytes[chunk_bytes] == std::byte{4});
  CHECK(bytes[2 * chunk_bytes] == std::byte{1});
  bytes[0] = std::byte{99};
  CHECK(pool.chunk(2)[0] == std::byte{3});
}

TEST(a_mapping_of_wrong_chunks_is_refused) {
  stoker::Pool pool(2 * chunk_bytes);
  stoker::Mapping two(2 * chunk_bytes);
  THROWN(std::invalid_argument(""), two.map(pool.fd(), {0, 2}));
  THROWN(std::invalid_argument(""), two.map(pool.fd(), {0}));
  CHECK(THROWN(stoker::SystemError(0, ""), two.map(-1, {0, 1})).code == EBADF);
  CHECK(THROWN(stoker::SystemError(0, ""), stoker::Mapping(~std::size_t{0})).code == ENOMEM);
  stoker::Mapping nothing(0);
  nothing.map(pool.fd(), {});
  CHECK(nothing.bytes().empty());
}
