// io_uring by its system calls: several reads are handed to the kernel at once.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "file_descriptor.h"

struct io_uring_cqe;
struct io_uring_params;

namespace stoker {

// For one thread at a time.
class Ring {
 public:
  static constexpr unsigned entries = 8;
  static constexpr std::size_t buffer_bytes_maximum = std::size_t{1} << 30;

  // Null where the kernel has no io_uring or forbids it.
  static std::unique_ptr<Ring> make();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring();

  // Pins the memory, which must outlive the ring; false where the kernel refuses, as it does
  // beyond RLIMIT_MEMLOCK.
  bool register_memory(std::span<std::byte> memory);
  bool has_memory() const { return !registered_.empty(); }

  struct Completion {
    std::uint64_t tag;
    int result;  // bytes, or minus an errno
  };

  // At most `entries` may be queued or under way.
  void queue_read(int fd, std::span<std::byte> into, std::uint64_t offset, std::uint64_t tag);
  // Hands over what is queued, and waits for one to end. Throws SystemError, and only while none
  // is under way.
  Completion wait();

 private:
  explicit Ring(Descriptor fd) : fd_(std::move(fd)) {}
  bool map(const ::io_uring_params& parameters);
  void forget_queued();
  std::optional<unsigned> buffer_of(std::span<const std::byte> into) const;

  struct Mapped {
    void* base = nullptr;
    std::size_t size = 0;
  };

  Descriptor fd_;
  Mapped submission_;
  Mapped completion_;
  Mapped queue_;
  std::span<std::byte> registered_;
  std::uint32_t* submission_tail_ = nullptr;
  std::uint32_t* submission_array_ = nullptr;
  std::uint32_t submission_mask_ = 0;
  std::uint32_t* completion_head_ = nullptr;
  std::uint32_t* completion_tail_ = nullptr;
  std::uint32_t completion_mask_ = 0;
  ::io_uring_cqe* completions_ = nullptr;
  unsigned queued_ = 0;
  unsigned under_way_ = 0;
};

}  // namespace stoker
