#include "load.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>

#include "check.h"
#include "chunk.h"
#include "error.h"
#include "memory_target.h"

using stoker::chunk_bytes;

namespace {

constexpr double no_deadline = std::numeric_limits<double>::infinity();

class Folder {
 public:
  Folder() {
    if (::mkdtemp(name_) == nullptr) throw std::runtime_error("no temporary folder");
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    for (const char* file : {"/data", "/copy"}) ::unlink((name_ + std::string(file)).c_str());
    ::rmdir(name_);
  }
  std::string operator/(const char* file) const { return name_ + std::string("/") + file; }

 private:
  char name_[32] = "/tmp/stoker-native-XXXXXX";
};

std::vector<std::byte> pattern(std::size_t count) {
  std::vector<std::byte> bytes(count);
  std::uint32_t state = 1;
  for (std::byte& byte : bytes) {
    state = state * 1664525 + 1013904223;
    byte = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

void put(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

// Two chunks, the second of odd size, and everything a load of them needs.
struct Case {
  static constexpr std::size_t total = chunk_bytes + 70'001;
  Folder folder;
  std::vector<std::byte> bytes = pattern(total);
  std::string path = folder / "data";
  std::shared_ptr<stoker::Pool> pool = std::make_shared<stoker::Pool>(3 * chunk_bytes);
  std::shared_ptr<stoker::Progress> progress = std::make_shared<stoker::Progress>(2, total);
  std::vector<std::optional<stoker::Digest>> digests{
      stoker::digest(std::span(bytes).first(chunk_bytes)),
      stoker::digest(std::span(bytes).subspan(chunk_bytes))};

  Case() { put(path, bytes); }

  stoker::Load load() {
    return {std::make_shared<stoker::PoolTarget>(pool, std::vector<std::size_t>{2, 0}, progress),
            {chunk_bytes, total - chunk_bytes},
            digests,
            true};
  }
  std::vector<stoker::ReadRequest> requests() const {
    return {{path, 0, 0}, {path, chunk_bytes, 1}};
  }
  bool is_whole() const {
    return std::equal(bytes.begin(), bytes.begin() + chunk_bytes, pool->chunk(2).begin()) &&
           std::equal(bytes.begin() + chunk_bytes, bytes.end(), pool->chunk(0).begin());
  }
};

}  // namespace

TEST(a_read_verifies_and_publishes_every_chunk) {
  for (const bool direct : {true, false})
    for (const unsigned threads : {1U, 4U}) {
      Case test;
      auto load = test.load();
      load.read(test.requests(), threads, direct, no_deadline);
      CHECK(test.is_whole());
      CHECK(test.progress->watermark_bytes() == Case::total);
      CHECK(load.digest_of(1) == test.digests[1]);
    }
}

TEST(a_cold_read_past_the_page_cache_gives_the_same_bytes) {
  Case test;
  const int fd = ::open(test.path.c_str(), O_RDONLY);
  ::fsync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
  auto load = test.load();
  load.read(test.requests(), 4, true, no_deadline);
  CHECK(test.is_whole());
}

TEST(an_odd_offset_is_read_through_the_page_cache) {
  Case test;
  stoker::Load load(
      std::make_shared<stoker::PoolTarget>(test.pool, std::vector<std::size_t>{0},
                                           std::make_shared<stoker::Progress>(1, 1000)),
      {1000}, {std::nullopt}, true);
  load.read({{test.path, 33, 0}}, 1, true, no_deadline);
  CHECK(
      std::equal(test.bytes.begin() + 33, test.bytes.begin() + 1033, test.pool->chunk(0).begin()));
}

TEST(the_watermark_waits_for_the_gap) {
  Case test;
  auto load = test.load();
  load.read({test.requests()[1]}, 1, true, no_deadline);
  CHECK(test.progress->watermark_bytes() == 0 && test.progress->is_ready(1));
  THROWN(std::invalid_argument(""), test.progress->complete());
  load.read({test.requests()[0]}, 1, true, no_deadline);
  CHECK(test.progress->watermark_bytes() == Case::total);
  test.progress->complete();
  test.progress->fail("too late");
  CHECK(test.progress->state() == stoker::State::complete && test.progress->error().empty());
}

TEST(a_corrupt_chunk_is_refused_with_both_digests_and_may_be_read_again) {
  Case test;
  auto wrong = test.bytes;
  wrong[chunk_bytes + 5] ^= std::byte{1};
  put(test.path, wrong);
  auto load = test.load();
  const auto error = THROWN(stoker::ChunkError(0, "", 0, "", ""),
                            load.read(test.requests(), 1, true, no_deadline));
  CHECK(error.ordinal == 1 && error.offset == chunk_bytes && error.path == test.path);
  CHECK(error.expected == stoker::hex(*test.digests[1]) && error.found != error.expected);
  CHECK(test.progress->watermark_bytes() == chunk_bytes && !load.digest_of(1));
  put(test.path, test.bytes);
  load.read({test.requests()[1]}, 1, true, no_deadline);
  CHECK(test.is_whole());
}

TEST(a_short_file_is_an_error_that_names_it) {
  Case test;
  put(test.path, std::span(test.bytes).first(chunk_bytes + 5000));
  for (const bool direct : {true, false}) {
    auto load = test.load();
    const auto error =
        THROWN(stoker::SystemError(0, ""), load.read({test.requests()[1]}, 1, direct, no_deadline));
    CHECK(error.code == EIO && error.path == test.path);
    CHECK(std::string(error.what()).find("ends at 16782216") != std::string::npos);
  }
}

TEST(a_missing_file_is_an_error_that_names_it) {
  Case test;
  auto load = test.load();
  const auto error = THROWN(stoker::SystemError(0, ""),
                            load.read({{test.folder / "none", 0, 0}}, 4, true, no_deadline));
  CHECK(error.code == ENOENT && error.path == test.folder / "none");
}

TEST(a_filled_chunk_is_published_by_its_commit) {
  Case test;
  auto load = test.load();
  const std::span<std::byte> memory = load.fill(1);
  CHECK(memory.size() == Case::total - chunk_bytes);
  THROWN(stoker::ChunkError(0, "", 0, "", ""), load.commit(1));
  THROWN(std::invalid_argument(""), load.commit(1));
  const std::span<std::byte> again = load.fill(1);
  std::copy(test.bytes.begin() + chunk_bytes, test.bytes.end(), again.begin());
  THROWN(std::invalid_argument(""), load.read({test.requests()[1]}, 1, true, no_deadline));
  CHECK(load.commit(1) == *test.digests[1]);
  CHECK(test.progress->is_ready(1));
  THROWN(std::invalid_argument(""), load.fill(1));
}

TEST(an_abandoned_chunk_may_be_read) {
  Case test;
  auto load = test.load();
  load.fill(1);
  load.abandon(1);
  load.read(test.requests(), 2, true, no_deadline);
  CHECK(test.is_whole());
}

TEST(a_chunk_is_written_whole_and_only_when_committed) {
  Case test;
  auto load = test.load();
  THROWN(std::invalid_argument(""), load.write(1, test.folder / "copy"));
  load.read(test.requests(), 2, true, no_deadline);
  load.write(1, test.folder / "copy");
  std::ifstream file(test.folder / "copy", std::ios::binary);
  const std::string copy((std::istreambuf_iterator<char>(file)), {});
  CHECK(copy.size() == Case::total - chunk_bytes);
  CHECK(
      std::equal(copy.begin(), copy.end(), test.bytes.begin() + chunk_bytes,
                 [](char left, std::byte right) { return static_cast<std::byte>(left) == right; }));
  CHECK(THROWN(stoker::SystemError(0, ""), load.write(1, test.folder / "none/copy")).code ==
        ENOENT);
}

TEST(a_cancelled_load_stays_cancelled) {
  Case test;
  auto load = test.load();
  load.cancel();
  THROWN(stoker::Cancelled(), load.read(test.requests(), 2, true, no_deadline));
  THROWN(stoker::Cancelled(), load.fill(0));
  CHECK(test.progress->watermark_bytes() == 0);
}

TEST(a_waiter_in_another_process_is_woken) {
  stoker::Progress progress(2, chunk_bytes + 1);
  const pid_t child = ::fork();
  if (child == 0) {
    auto joined = stoker::Progress::open(progress.fd());
    const bool reached = joined.wait(chunk_bytes + 1, 20) == stoker::Progress::Wait::reached;
    ::_exit(reached ? 0 : 1);
  }
  ::usleep(50'000);
  progress.publish(1);
  progress.publish(0);
  int status = -1;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(a_wait_ends_with_the_load_or_the_time) {
  stoker::Progress progress(1, 5);
  CHECK(progress.wait(5, 0.02) == stoker::Progress::Wait::timed_out);
  CHECK(progress.wait(0, 0) == stoker::Progress::Wait::reached);
  THROWN(std::invalid_argument(""), progress.wait(6, 0));
  std::thread failing([&progress] { progress.fail(std::string(2047, 'x') + "\xC3\xA9"); });
  CHECK(progress.wait(5, 20) == stoker::Progress::Wait::ended);
  failing.join();
  CHECK(progress.error() == std::string(2047, 'x'));
}

TEST(a_wrong_descriptor_is_no_progress_page) {
  THROWN(std::invalid_argument(""), stoker::Progress(1, chunk_bytes + 1));
  const int fd = ::memfd_create("other", MFD_CLOEXEC);
  THROWN(std::invalid_argument(""), stoker::Progress::open(fd));
  ::close(fd);
  const stoker::Descriptor sealed = stoker::make_memory_file("other", 65'536);
  THROWN(std::invalid_argument(""), stoker::Progress::open(sealed.get()));
  CHECK(THROWN(stoker::SystemError(0, ""), stoker::Progress::open(-1)).code == EBADF);
}

namespace {

void drop_from_page_cache(const std::string& path) {
  const stoker::Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ::fsync(file.get());
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED);
}

// A load of the case's file into a region.
struct RegionCase : Case {
  std::shared_ptr<stoker::Region> region = std::make_shared<stoker::Region>(total);

  std::unique_ptr<stoker::Load> load(bool borrow) {
    return std::make_unique<stoker::Load>(
        std::make_shared<stoker::RegionTarget>(region, progress, borrow),
        std::vector<std::size_t>{chunk_bytes, total - chunk_bytes}, digests, false);
  }
  bool is_whole() const { return std::equal(bytes.begin(), bytes.end(), region->bytes().begin()); }
};

}  // namespace

TEST(a_region_holds_the_bytes_of_a_file) {
  for (const bool borrow : {true, false})
    for (const bool cold : {true, false}) {
      RegionCase test;
      if (cold) drop_from_page_cache(test.path);
      auto load = test.load(borrow);
      load->read(test.requests(), 4, true, no_deadline);
      CHECK(test.is_whole());
      if (cold) continue;
      CHECK(load->count_of(borrow ? stoker::Way::borrowed : stoker::Way::cached) == 2);
    }
  CHECK(THROWN(stoker::SystemError(0, ""), stoker::Region(~std::size_t{0}, true)).code == ENOMEM);
}

TEST(what_is_written_to_borrowed_pages_stays_in_this_process) {
  RegionCase test;
  test.load(true)->read(test.requests(), 2, true, no_deadline);
  test.region->bytes()[5] ^= std::byte{0xFF};
  test.region->bytes()[Case::total - 1] ^= std::byte{0xFF};
  std::ifstream file(test.path, std::ios::binary);
  std::vector<char> found(Case::total);
  file.read(found.data(), static_cast<std::streamsize>(found.size()));
  CHECK(std::equal(test.bytes.begin(), test.bytes.end(),
                   reinterpret_cast<const std::byte*>(found.data())));
}

TEST(damage_in_borrowed_pages_is_refused) {
  RegionCase test;
  test.bytes[chunk_bytes + 3] ^= std::byte{1};
  put(test.path, test.bytes);
  const auto error = THROWN(stoker::ChunkError(0, "", 0, "", ""),
                            test.load(true)->read(test.requests(), 1, true, no_deadline));
  CHECK(error.ordinal == 1);
  CHECK(!test.progress->is_ready(1));
}

TEST(direct_reads_use_rings_of_the_pool_where_the_kernel_has_them) {
  const bool has_rings = stoker::Ring::make() != nullptr;
  Case test;
  test.pool->prefault(2);
  while (test.pool->prefaulted_bytes() < 3 * chunk_bytes) std::this_thread::yield();
  drop_from_page_cache(test.path);
  auto load = test.load();
  load.read(test.requests(), 4, true, no_deadline);
  CHECK(test.is_whole());
  const std::size_t by_ring = load.count_of(stoker::Way::direct_by_ring);
  const std::size_t otherwise =
      load.count_of(stoker::Way::buffered) + load.count_of(stoker::Way::cached);
  CHECK(by_ring == (has_rings ? 2 - otherwise : 0));
}

TEST(a_file_that_ends_early_is_an_error_by_every_way) {
  for (const bool direct : {true, false})
    for (const std::size_t end :
         {Case::total - 1, chunk_bytes + 4096, chunk_bytes, chunk_bytes - 1}) {
      Case test;
      put(test.path, std::span(test.bytes).first(end));
      drop_from_page_cache(test.path);
      auto load = test.load();
      const auto error =
          THROWN(stoker::SystemError(0, ""), load.read(test.requests(), 1, direct, no_deadline));
      CHECK(error.code == EIO);
      CHECK(error.path == test.path);
    }
}

TEST(the_earliest_deadline_has_its_turn_first) {
  stoker::Turns turns(1);
  std::vector<int> order;
  std::vector<std::thread> threads;
  {
    const stoker::Turns::Turn held(turns, 0);
    for (const int deadline : {3, 1, 2}) {
      threads.emplace_back([&turns, &order, deadline] {
        const stoker::Turns::Turn turn(turns, deadline);
        order.push_back(deadline);
      });
      while (turns.waiting_count() < threads.size()) std::this_thread::yield();
    }
  }
  for (std::thread& thread : threads) thread.join();
  CHECK((order == std::vector<int>{1, 2, 3}));
}
