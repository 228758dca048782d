#include "pool.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "chunk.h"
#include "error.h"

namespace stoker {
namespace {

constexpr const char* memory_file_name = "stoker-pool";

std::size_t whole_chunks(std::size_t capacity_bytes) {
  const std::size_t count = capacity_bytes / chunk_bytes;
  if (count == 0)
    throw std::invalid_argument("expected room for at least one chunk of " +
                                std::to_string(chunk_bytes) + " bytes, found " +
                                std::to_string(capacity_bytes));
  return count;
}

Descriptor memory_of(std::optional<int> handed_over, std::size_t bytes) {
  if (!handed_over) return make_memory_file(memory_file_name, bytes);
  Descriptor file(::fcntl(*handed_over, F_DUPFD_CLOEXEC, 0));
  struct stat status{};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0)
    throw SystemError(errno, "cannot take a memory file over");
  const int seals = ::fcntl(file.get(), F_GET_SEALS);
  if (seals < 0) throw SystemError(errno, "expected a memory file to take over");
  const auto found = static_cast<std::size_t>(status.st_size);
  if ((seals & F_SEAL_SEAL) == 0) {
    seal_memory_file(file.get(), bytes);
  } else if (found != bytes) {
    ::fallocate(file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, status.st_size);
    return make_memory_file(memory_file_name, bytes);
  }
  return file;
}

Descriptor open_reader(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const int reader = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader < 0) throw SystemError(errno, "cannot open the pool for reading", path);
  return Descriptor(reader);
}

// Signals go to the threads that expect them, and the processor to those that need it.
void stay_in_the_background() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  const sched_param parameters{};
  // Refused only by unusual sandboxes, where the thread runs at normal priority.
  ::sched_setscheduler(0, SCHED_IDLE, &parameters);
}

}  // namespace

Pool::Pool(std::size_t capacity_bytes, std::optional<int> memory_file)
    : chunk_count_(whole_chunks(capacity_bytes)),
      file_(memory_of(memory_file, chunk_count_ * chunk_bytes)),
      reader_(open_reader(file_.get())),
      memory_(Memory::shared(file_.get(), chunk_count_ * chunk_bytes, true)),
      huge_pages_(false),
      lanes_(memory_.bytes(), device_turns),
      turns_(device_turns),
      allocated_(chunk_count_, false),
      free_count_(chunk_count_),
      owner_process_(::getpid()) {
  // The settings of the kernel say what is allowed; only a page that is there says what is.
  populate(memory_.bytes().first(huge_page_bytes), true);
  huge_pages_ = stoker::has_huge_pages(memory_.data());
}

Pool::~Pool() {
  stopping_ = true;
  // A forked child has the objects of these threads but not the threads: nothing to join.
  if (::getpid() != owner_process_) new std::vector<std::jthread>(std::move(threads_));
  threads_.clear();
}

std::size_t Pool::free_count() const {
  const std::lock_guard lock(mutex_);
  return free_count_;
}

std::vector<std::size_t> Pool::allocate(std::size_t count) {
  const std::lock_guard lock(mutex_);
  if (count > free_count_) throw PoolExhausted(count, free_count_);
  std::vector<std::size_t> chunks;
  chunks.reserve(count);
  for (std::size_t index = 0; chunks.size() < count; ++index)
    if (!allocated_[index]) chunks.push_back(index);
  for (const std::size_t index : chunks) allocated_[index] = true;
  free_count_ -= count;
  return chunks;
}

void Pool::claim(const std::vector<std::size_t>& chunks) {
  const std::lock_guard lock(mutex_);
  mark(chunks, true);
  free_count_ -= chunks.size();
}

void Pool::release(const std::vector<std::size_t>& chunks) {
  const std::lock_guard lock(mutex_);
  mark(chunks, false);
  free_count_ += chunks.size();
}

void Pool::mark(const std::vector<std::size_t>& chunks, bool allocated) {
  std::vector<bool> after = allocated_;
  for (const std::size_t index : chunks) {
    if (index >= chunk_count_ || after[index] == allocated)
      throw std::invalid_argument(std::string("expected ") + (allocated ? "free" : "allocated") +
                                  " chunks, found chunk " + std::to_string(index) + " that is not");
    after[index] = allocated;
  }
  allocated_ = std::move(after);
}

std::span<std::byte> Pool::chunk(std::size_t index) const {
  if (index >= chunk_count_)
    throw std::invalid_argument("expected a chunk below " + std::to_string(chunk_count_) +
                                ", found " + std::to_string(index));
  return memory_.bytes().subspan(index * chunk_bytes, chunk_bytes);
}

void Pool::prefault(unsigned threads) {
  const std::lock_guard lock(mutex_);
  if (!threads_.empty()) throw std::invalid_argument("the pool is being prefaulted already");
  for (unsigned index = 0; index < threads; ++index) {
    try {
      threads_.emplace_back([this] { prefault_chunks(); });
    } catch (const std::system_error& error) {
      if (threads_.empty()) throw SystemError(error.code().value(), "cannot start a thread");
      return;
    }
  }
}

void Pool::prefault_chunks() {
  stay_in_the_background();
  for (std::size_t index = next_to_prefault_++; index < chunk_count_ && !stopping_;
       index = next_to_prefault_++) {
    const std::span<std::byte> bytes = chunk(index);
    for (std::size_t at = 0; at < bytes.size() && !stopping_; at += huge_page_bytes) {
      try {
        populate(bytes.subspan(at, huge_page_bytes), true);
      } catch (const SystemError&) {
        // Out of memory here is not a fault of a load; `prefaulted_bytes` stays behind and says so.
        return;
      }
      // Before the last bytes are told of: who sees them all finds the rings ready.
      if ((faulted_bytes_ += huge_page_bytes) == memory_.size()) lanes_.prepare();
      prefaulted_bytes_ += huge_page_bytes;
    }
  }
}

}  // namespace stoker
