#include "progress.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

#include "chunk.h"
#include "error.h"

namespace stoker {

struct Progress::Page {
  std::uint64_t magic;
  std::uint64_t chunk_count;
  std::uint64_t total_bytes;
  std::atomic<std::uint64_t> watermark_bytes;
  std::atomic<std::uint64_t> ready_prefix;  // chunks ready from the start
  std::atomic<std::uint32_t> changes;       // the futex word
  std::atomic<std::uint32_t> state;
  std::atomic<double> fetch_seconds;
  std::atomic<double> load_seconds;
  std::atomic<std::uint32_t> error_bytes;
  std::array<std::atomic<char>, error_bytes_maximum> error;
  std::atomic<std::uint64_t> ready[1];  // as many words as chunk_count needs
};

namespace {

constexpr std::uint64_t magic = 0x31474F5250544B53;  // "SKTPROG1"
constexpr std::size_t chunks_maximum = std::size_t{1} << 32;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<double>::is_always_lock_free);

std::size_t words_for(std::size_t chunk_count) { return chunk_count / 64 + 1; }

void check_extent(std::uint64_t chunk_count, std::uint64_t total_bytes) {
  if (chunk_count <= chunks_maximum &&
      total_bytes / chunk_bytes + (total_bytes % chunk_bytes != 0) == chunk_count)
    return;
  throw std::invalid_argument("expected a total that ends in the last of " +
                              std::to_string(chunk_count) + " chunks, found " +
                              std::to_string(total_bytes) + " bytes");
}

Descriptor duplicate(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw SystemError(errno, "cannot duplicate the progress descriptor");
  return Descriptor(copy);
}

std::size_t size_of(int fd) {
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw SystemError(errno, "cannot look at the progress page");
  return static_cast<std::size_t>(status.st_size);
}

// Cut so that no UTF-8 sequence is torn.
std::string_view cut(std::string_view text, std::size_t bytes_maximum) {
  if (text.size() <= bytes_maximum) return text;
  std::size_t end = bytes_maximum;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

// The word is shared between processes, so the private variant would wake nobody there.
long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value,
           const timespec* timeout) {
  return ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), operation, value, timeout,
                   nullptr, FUTEX_BITSET_MATCH_ANY);
}

timespec monotonic_after(double seconds) {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  // A year is as good as for ever, and keeps the sum in range.
  const double bounded = std::clamp(seconds, 0.0, 31'536'000.0);
  const auto nanoseconds =
      static_cast<long long>(std::llround(bounded * 1e9)) + static_cast<long long>(now.tv_nsec);
  now.tv_sec += static_cast<time_t>(nanoseconds / 1'000'000'000);
  now.tv_nsec = static_cast<long>(nanoseconds % 1'000'000'000);
  return now;
}

}  // namespace

Progress::Progress(std::size_t chunk_count, std::uint64_t total_bytes)
    : file_((check_extent(chunk_count, total_bytes),
             make_memory_file("stoker-progress", sizeof(Page) + words_for(chunk_count) * 8))),
      memory_(Memory::shared(file_.get(), size_of(file_.get()), false)) {
  // The memory file is zero, and zero is the first value of every field but these.
  Page* page = new (memory_.data()) Page;
  page->chunk_count = chunk_count;
  page->total_bytes = total_bytes;
  page->magic = magic;
}

Progress::Progress(Descriptor file)
    : file_(std::move(file)), memory_(Memory::shared(file_.get(), size_of(file_.get()), false)) {}

Progress::~Progress() = default;

Progress Progress::open(int fd) {
  Descriptor file = duplicate(fd);
  if (size_of(file.get()) < sizeof(Page) + 8)
    throw std::invalid_argument("expected a progress page behind the descriptor");
  const int seals = ::fcntl(file.get(), F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
    throw std::invalid_argument("expected a sealed progress page behind the descriptor");
  return Progress(std::move(file));
}

}  // namespace stoker
