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
#include <climits>
#include <cmath>
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
  // Behind the page: one bit for each chunk, in words of 64.
};

namespace {

constexpr std::uint64_t magic = 0x31474F5250544B53;  // "SKTPROG1"
constexpr std::size_t chunks_maximum = std::size_t{1} << 32;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(std::atomic<double>::is_always_lock_free);

std::size_t ready_bytes(std::size_t chunk_count) { return (chunk_count + 63) / 64 * 8; }

void check_extent(std::uint64_t chunk_count, std::uint64_t total_bytes) {
  if (chunk_count <= chunks_maximum && chunks_for(total_bytes) == chunk_count) return;
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
  struct stat status{};
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
             make_memory_file("stoker-progress", sizeof(Page) + ready_bytes(chunk_count)))),
      memory_(Memory::shared(file_.get(), size_of(file_.get()), false)),
      chunk_count_(chunk_count),
      total_bytes_(total_bytes) {
  Page* page = new (memory_.data()) Page;
  page->chunk_count = chunk_count;
  page->total_bytes = total_bytes;
  page->magic = magic;
}

Progress::Progress(Descriptor file)
    : file_(std::move(file)),
      memory_(Memory::shared(file_.get(), size_of(file_.get()), false)),
      chunk_count_(page().chunk_count),
      total_bytes_(page().total_bytes) {
  check_extent(chunk_count_, total_bytes_);
  if (page().magic != magic || memory_.size() < sizeof(Page) + ready_bytes(chunk_count_))
    throw std::invalid_argument("expected a progress page behind the descriptor");
}

Progress Progress::open(int fd) {
  Descriptor file = duplicate(fd);
  const int seals = ::fcntl(file.get(), F_GET_SEALS);
  // Without the seal another process could shrink the page, and an access would kill this one.
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || size_of(file.get()) < sizeof(Page))
    throw std::invalid_argument("expected a progress page behind the descriptor");
  return Progress(std::move(file));
}

Progress::Page& Progress::page() const {
  return *std::launder(reinterpret_cast<Page*>(memory_.data()));
}

std::uint64_t& Progress::ready_word(std::size_t ordinal) const {
  return reinterpret_cast<std::uint64_t*>(memory_.data() + sizeof(Page))[ordinal / 64];
}

std::uint64_t Progress::watermark_bytes() const { return page().watermark_bytes; }
State Progress::state() const { return static_cast<State>(page().state.load()); }
double Progress::fetch_seconds() const { return page().fetch_seconds; }
double Progress::load_seconds() const { return page().load_seconds; }
void Progress::set_fetch_seconds(double seconds) { page().fetch_seconds = seconds; }
void Progress::set_load_seconds(double seconds) { page().load_seconds = seconds; }

std::string Progress::error() const {
  const std::size_t length = std::min<std::size_t>(page().error_bytes, error_bytes_maximum);
  std::string text(length, '\0');
  for (std::size_t index = 0; index < length; ++index) text[index] = page().error[index];
  return text;
}

void Progress::check(std::size_t ordinal) const {
  if (ordinal < chunk_count_) return;
  throw std::invalid_argument("expected a chunk below " + std::to_string(chunk_count_) +
                              ", found " + std::to_string(ordinal));
}

bool Progress::is_ready(std::size_t ordinal) const {
  check(ordinal);
  const std::atomic_ref<std::uint64_t> word(ready_word(ordinal));
  return ((word.load() >> (ordinal % 64)) & 1) != 0;
}

void Progress::publish(std::size_t ordinal) {
  check(ordinal);
  const std::lock_guard lock(mutex_);
  const std::atomic_ref<std::uint64_t> word(ready_word(ordinal));
  word.fetch_or(std::uint64_t{1} << (ordinal % 64));
  const std::size_t before = page().ready_prefix;
  std::size_t prefix = before;
  while (prefix < chunk_count_ && is_ready(prefix)) ++prefix;
  if (prefix != before) {
    page().ready_prefix = prefix;
    page().watermark_bytes = prefix == chunk_count_ ? total_bytes_ : prefix * chunk_bytes;
  }
  wake();
}

void Progress::complete() {
  const std::lock_guard lock(mutex_);
  if (watermark_bytes() != total_bytes_)
    throw std::invalid_argument("expected all " + std::to_string(total_bytes_) +
                                " bytes to be ready, found " + std::to_string(watermark_bytes()));
  finish(State::complete);
}

void Progress::cancel() {
  const std::lock_guard lock(mutex_);
  finish(State::cancelled);
}

void Progress::fail(std::string_view message) {
  const std::lock_guard lock(mutex_);
  if (state() != State::loading) return;
  const std::string_view kept = cut(message, error_bytes_maximum);
  for (std::size_t index = 0; index < kept.size(); ++index) page().error[index] = kept[index];
  page().error_bytes = static_cast<std::uint32_t>(kept.size());
  finish(State::failed);
}

void Progress::finish(State state) {
  auto expected = static_cast<std::uint32_t>(State::loading);
  if (page().state.compare_exchange_strong(expected, static_cast<std::uint32_t>(state))) wake();
}

void Progress::wake() const {
  page().changes.fetch_add(1);
  futex(page().changes, FUTEX_WAKE, INT_MAX, nullptr);
}

Progress::Wait Progress::wait(std::uint64_t wanted_bytes, double timeout_seconds) const {
  if (wanted_bytes > total_bytes_)
    throw std::invalid_argument("expected to wait for at most " + std::to_string(total_bytes_) +
                                " bytes, found " + std::to_string(wanted_bytes));
  return wait_until([&] { return watermark_bytes() >= wanted_bytes; }, timeout_seconds);
}

Progress::Wait Progress::wait_for_chunks(std::size_t first, std::size_t last,
                                         double timeout_seconds) const {
  if (first < last) check(last - 1);
  std::size_t next = first;
  const auto reached = [&] {
    while (next < last && is_ready(next)) ++next;
    return next >= last;
  };
  return wait_until(reached, timeout_seconds);
}

template <typename Reached>
Progress::Wait Progress::wait_until(Reached reached, double timeout_seconds) const {
  const timespec deadline = monotonic_after(timeout_seconds);
  for (;;) {
    // Read before the rest, so that a change in between makes the wait return at once.
    const std::uint32_t seen = page().changes;
    if (reached()) return Wait::reached;
    if (state() != State::loading) return Wait::ended;
    if (futex(page().changes, FUTEX_WAIT_BITSET, seen, &deadline) == 0 || errno == EAGAIN) continue;
    if (errno == EINTR) return Wait::interrupted;
    if (errno == ETIMEDOUT) return Wait::timed_out;
    throw SystemError(errno, "cannot wait for the progress page");
  }
}

}  // namespace stoker
