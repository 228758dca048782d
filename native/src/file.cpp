#include "file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "chunk.h"
#include "error.h"

// Linux 6.5; the number is the same on every architecture.
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif

namespace stoker {
namespace {

int open_or_throw(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) throw SystemError(errno, "cannot open file", path);
  return fd;
}

bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % page_bytes == 0;
}

bool refuses_direct(int code) { return code == EINVAL || code == EOPNOTSUPP; }

// Removes the temporary file unless it was renamed.
class TemporaryName {
 public:
  explicit TemporaryName(const std::string& path) {
    static std::atomic<unsigned> counter{0};
    name_ = path + ".tmp." + std::to_string(::getpid()) + "." + std::to_string(counter++);
  }
  TemporaryName(const TemporaryName&) = delete;
  TemporaryName& operator=(const TemporaryName&) = delete;
  ~TemporaryName() {
    if (!renamed_) ::unlink(name_.c_str());
  }

  const std::string& name() const { return name_; }
  void rename_to(const std::string& path) {
    if (::rename(name_.c_str(), path.c_str()) != 0)
      throw SystemError(errno, "cannot rename the written file", path);
    renamed_ = true;
  }

 private:
  std::string name_;
  bool renamed_ = false;
};

void write_all(int fd, std::span<const std::byte> bytes, const std::string& path) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const std::size_t want = std::min(bytes.size() - done, request_bytes);
    const ssize_t put = ::pwrite(fd, bytes.data() + done, want, static_cast<off_t>(done));
    if (put >= 0) {
      done += static_cast<std::size_t>(put);
      continue;
    }
    if (errno == EINTR) continue;
    const int code = errno;
    const int flags = ::fcntl(fd, F_GETFL);
    if (refuses_direct(code) && (flags & O_DIRECT) != 0) {
      ::fcntl(fd, F_SETFL, flags & ~O_DIRECT);
      continue;
    }
    throw SystemError(code, "cannot write at byte " + std::to_string(done), path);
  }
}

}  // namespace

Descriptor make_memory_file(const char* name, std::size_t bytes) {
  Descriptor file(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) throw SystemError(errno, "cannot create a memory file");
  seal_memory_file(file.get(), bytes);
  return file;
}

void seal_memory_file(int fd, std::size_t bytes) {
  if (::ftruncate(fd, static_cast<off_t>(bytes)) != 0)
    throw SystemError(errno, "cannot size a memory file");
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    throw SystemError(errno, "cannot seal a memory file");
}

SourceFile::SourceFile(std::string path, bool direct)
    : path_(std::move(path)), buffered_(open_or_throw(path_, O_RDONLY)) {
  if (!direct) return;
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (fd >= 0) {
    direct_.emplace(fd);
  } else if (!refuses_direct(errno)) {
    throw SystemError(errno, "cannot open file", path_);
  }
}

// Copying from the page cache is several times faster than reading the device again.
bool SourceFile::is_cached(std::uint64_t offset, std::size_t count) const {
  struct {
    std::uint64_t offset;
    std::uint64_t length;
  } range{offset, count};
  struct {
    std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } pages{};
  if (::syscall(SYS_cachestat, buffered_.get(), &range, &pages, 0U) != 0) return false;
  return pages.cached * page_bytes >= count;
}

// `count` bytes of the file from `offset` go to the front of `target`.
struct SourceFile::Range {
  std::span<std::byte> target;
  std::uint64_t offset;
  std::size_t count;

  std::size_t whole_pages() const { return round_up(count, page_bytes); }
};

Way SourceFile::read(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
                     const std::atomic<bool>& cancelled, Lanes* lanes) const {
  const Range range{target, offset, count};
  if (may_read_directly(range)) {
    const Lanes::Lane lane = lanes == nullptr ? Lanes::Lane() : lanes->take();
    if (lane.ring() != nullptr) {
      if (cancelled.load(std::memory_order_relaxed)) throw Cancelled();
      if (read_by_ring(*lane.ring(), range)) return Way::direct_by_ring;
    } else if (read_directly(range, cancelled)) {
      return Way::direct;
    }
    direct_works_ = false;
  }
  read_buffered(range, cancelled);
  return Way::buffered;
}

Way SourceFile::read_cached(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
                            const std::atomic<bool>& cancelled) const {
  read_buffered({target, offset, count}, cancelled);
  return Way::cached;
}

bool SourceFile::may_read_directly(const Range& range) const {
  return direct_ && direct_works_ && is_aligned(range.target.data()) &&
         range.offset % page_bytes == 0 && range.whole_pages() <= range.target.size();
}

// False when the file system refuses direct reads after all. Nothing is under way at the end.
bool SourceFile::read_by_ring(Ring& ring, const Range& range) const {
  const std::size_t end = range.whole_pages();
  const auto piece_end = [&](std::size_t at) {
    return std::min(end, at / request_bytes * request_bytes + request_bytes);
  };
  unsigned under_way = 0;
  const auto ask = [&](std::size_t at) {
    ring.queue_read(direct_->get(), range.target.subspan(at, piece_end(at) - at), range.offset + at,
                    at);
    ++under_way;
  };
  std::size_t next = 0;
  std::size_t ended_at = range.count;
  int code = 0;
  for (;;) {
    for (; next < end && under_way < Ring::entries && code == 0; next = piece_end(next)) ask(next);
    if (under_way == 0) break;
    const Ring::Completion completion = ring.wait();
    --under_way;
    const auto at = static_cast<std::size_t>(completion.tag);
    const auto got = static_cast<std::size_t>(std::max(completion.result, 0));
    if (completion.result == 0) {
      ended_at = std::min(ended_at, at);
    } else if (completion.result < 0 && completion.result != -EINTR &&
               completion.result != -EAGAIN) {
      code = -completion.result;
    } else if (at + got < std::min(piece_end(at), range.count) && code == 0) {
      // What is not at a page boundary lies before the file's end: the rest is asked for buffered.
      if (got % page_bytes == 0) {
        ask(at + got);
      } else {
        ended_at = std::min(ended_at, at + got);
      }
    }
  }
  if (refuses_direct(code)) return false;
  if (code != 0) fail(code, range.offset);
  if (ended_at < range.count) fail_short(range, ended_at);
  return true;
}

// False when the file system refuses direct reads after all.
bool SourceFile::read_directly(const Range& range, const std::atomic<bool>& cancelled) const {
  std::size_t done = 0;
  while (done < range.count) {
    if (cancelled.load(std::memory_order_relaxed)) throw Cancelled();
    const ssize_t got =
        ::pread(direct_->get(), range.target.data() + done, range.whole_pages() - done,
                static_cast<off_t>(range.offset + done));
    if (got > 0) {
      done += static_cast<std::size_t>(got);
      // A direct read must begin at a page boundary; the last pages are read once more.
      if (done < range.count) done = done / page_bytes * page_bytes;
    } else if (got == 0) {
      fail_short(range, done);
    } else if (refuses_direct(errno)) {
      return false;
    } else if (errno != EINTR) {
      fail(errno, range.offset + done);
    }
  }
  return true;
}

void SourceFile::read_buffered(const Range& range, const std::atomic<bool>& cancelled) const {
  std::size_t done = 0;
  while (done < range.count) {
    if (cancelled.load(std::memory_order_relaxed)) throw Cancelled();
    const ssize_t got = ::pread(buffered_.get(), range.target.data() + done,
                                std::min(range.count - done, request_bytes),
                                static_cast<off_t>(range.offset + done));
    if (got > 0) {
      done += static_cast<std::size_t>(got);
    } else if (got == 0) {
      fail_short(range, done);
    } else if (errno != EINTR) {
      fail(errno, range.offset + done);
    }
  }
}

void SourceFile::fail_short(const Range& range, std::size_t found) const {
  throw SystemError(EIO,
                    "expected " + std::to_string(range.count) + " bytes at offset " +
                        std::to_string(range.offset) + ", the file ends at " +
                        std::to_string(range.offset + found),
                    path_);
}

void SourceFile::fail(int code, std::uint64_t offset) const {
  throw SystemError(code, "cannot read at offset " + std::to_string(offset), path_);
}

void write_file(const std::string& path, std::span<const std::byte> source, std::size_t count) {
  TemporaryName temporary(path);
  int fd =
      ::open(temporary.name().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_DIRECT, 0600);
  if (fd < 0 && refuses_direct(errno)) {
    // The failed attempt may have left the name behind.
    ::unlink(temporary.name().c_str());
    fd = ::open(temporary.name().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  }
  if (fd < 0) throw SystemError(errno, "cannot create file", path);
  const Descriptor file(fd);
  const std::size_t whole = round_up(count, page_bytes);
  write_all(file.get(), source.first(std::min(whole, source.size())), path);
  if (::ftruncate(file.get(), static_cast<off_t>(count)) != 0)
    throw SystemError(errno, "cannot set the file's size", path);
  if (::fsync(file.get()) != 0) throw SystemError(errno, "cannot sync file", path);
  temporary.rename_to(path);
}

}  // namespace stoker
