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

Descriptor::Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

Descriptor make_memory_file(const char* name, std::size_t bytes) {
  Descriptor file(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (file.get() < 0) throw SystemError(errno, "cannot create a memory file");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0)
    throw SystemError(errno, "cannot size a memory file");
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
    throw SystemError(errno, "cannot seal a memory file");
  return file;
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

void SourceFile::read(std::span<std::byte> target, std::uint64_t offset, std::size_t count,
                      const std::atomic<bool>& cancelled) const {
  const bool cached = direct_ && is_cached(offset, count);
  std::size_t done = 0;
  while (done < count) {
    if (cancelled.load(std::memory_order_relaxed)) throw Cancelled();
    std::byte* const to = target.data() + done;
    const std::uint64_t from = offset + done;
    std::size_t ask = std::min(count - done, request_bytes);
    const std::size_t ask_whole = round_up(ask, page_bytes);
    const bool direct = direct_ && direct_works_ && !cached && is_aligned(to) &&
                        from % page_bytes == 0 && ask_whole <= target.size() - done;
    if (direct) ask = ask_whole;
    const int fd = direct ? direct_->get() : buffered_.get();
    const ssize_t got = ::pread(fd, to, ask, static_cast<off_t>(from));
    if (got > 0) {
      done += std::min(static_cast<std::size_t>(got), count - done);
    } else if (got == 0) {
      throw SystemError(EIO,
                        "expected " + std::to_string(count) + " bytes at offset " +
                            std::to_string(offset) + ", the file ends at " + std::to_string(from),
                        path_);
    } else if (direct && refuses_direct(errno)) {
      direct_works_ = false;
    } else if (errno != EINTR) {
      throw SystemError(errno, "cannot read at offset " + std::to_string(from), path_);
    }
  }
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
