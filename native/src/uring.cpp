#include "uring.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"

namespace stoker {
namespace {

std::uint32_t load(std::uint32_t* word) {
  return std::atomic_ref<std::uint32_t>(*word).load(std::memory_order_acquire);
}

void store(std::uint32_t* word, std::uint32_t value) {
  std::atomic_ref<std::uint32_t>(*word).store(value, std::memory_order_release);
}

template <typename T>
T* at(void* base, std::uint32_t offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(base) + offset);
}

void* map_ring(int fd, std::size_t size, std::uint64_t what) {
  void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
                        static_cast<off_t>(what));
  return mapped == MAP_FAILED ? nullptr : mapped;
}

}  // namespace

std::unique_ptr<Ring> Ring::make() {
  io_uring_params parameters{};
  const long fd = ::syscall(SYS_io_uring_setup, entries, &parameters);
  if (fd < 0) return nullptr;
  std::unique_ptr<Ring> ring(new Ring(Descriptor(static_cast<int>(fd))));
  if (!ring->map(parameters)) return nullptr;
  return ring;
}

bool Ring::map(const io_uring_params& p) {
  submission_.size = p.sq_off.array + p.sq_entries * sizeof(std::uint32_t);
  completion_.size = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe);
  queue_.size = p.sq_entries * sizeof(io_uring_sqe);
  submission_.base = map_ring(fd_.get(), submission_.size, IORING_OFF_SQ_RING);
  completion_.base = map_ring(fd_.get(), completion_.size, IORING_OFF_CQ_RING);
  queue_.base = map_ring(fd_.get(), queue_.size, IORING_OFF_SQES);
  if (submission_.base == nullptr || completion_.base == nullptr || queue_.base == nullptr)
    return false;
  submission_tail_ = at<std::uint32_t>(submission_.base, p.sq_off.tail);
  submission_array_ = at<std::uint32_t>(submission_.base, p.sq_off.array);
  submission_mask_ = *at<std::uint32_t>(submission_.base, p.sq_off.ring_mask);
  completion_head_ = at<std::uint32_t>(completion_.base, p.cq_off.head);
  completion_tail_ = at<std::uint32_t>(completion_.base, p.cq_off.tail);
  completion_mask_ = *at<std::uint32_t>(completion_.base, p.cq_off.ring_mask);
  completions_ = at<io_uring_cqe>(completion_.base, p.cq_off.cqes);
  return true;
}

Ring::~Ring() {
  for (const Mapped& mapped : {submission_, completion_, queue_})
    if (mapped.base != nullptr) ::munmap(mapped.base, mapped.size);
}

bool Ring::register_memory(std::span<std::byte> memory) {
  std::vector<iovec> buffers;
  for (std::size_t begin = 0; begin < memory.size(); begin += buffer_bytes_maximum)
    buffers.push_back(
        {memory.data() + begin, std::min(buffer_bytes_maximum, memory.size() - begin)});
  const long result = ::syscall(SYS_io_uring_register, fd_.get(), IORING_REGISTER_BUFFERS,
                                buffers.data(), buffers.size());
  if (result != 0) return false;
  registered_ = memory;
  return true;
}

std::optional<unsigned> Ring::buffer_of(std::span<const std::byte> into) const {
  if (registered_.empty() || into.data() < registered_.data() ||
      into.data() + into.size() > registered_.data() + registered_.size())
    return std::nullopt;
  const auto begin = static_cast<std::size_t>(into.data() - registered_.data());
  if (begin / buffer_bytes_maximum != (begin + into.size() - 1) / buffer_bytes_maximum)
    return std::nullopt;
  return static_cast<unsigned>(begin / buffer_bytes_maximum);
}

void Ring::queue_read(int fd, std::span<std::byte> into, std::uint64_t offset, std::uint64_t tag) {
  const std::optional<unsigned> buffer = buffer_of(into);
  const std::uint32_t tail = load(submission_tail_);
  const std::uint32_t slot = tail & submission_mask_;
  io_uring_sqe& entry = static_cast<io_uring_sqe*>(queue_.base)[slot];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = buffer ? IORING_OP_READ_FIXED : IORING_OP_READ;
  entry.fd = fd;
  entry.addr = reinterpret_cast<std::uintptr_t>(into.data());
  entry.len = static_cast<std::uint32_t>(into.size());
  entry.off = offset;
  entry.buf_index = static_cast<std::uint16_t>(buffer.value_or(0));
  entry.user_data = tag;
  submission_array_[slot] = slot;
  store(submission_tail_, tail + 1);
  ++queued_;
}

Ring::Completion Ring::wait() {
  bool starved = false;
  for (;;) {
    const std::uint32_t head = load(completion_head_);
    const bool ended = head != load(completion_tail_);
    if (ended && (queued_ == 0 || starved)) {
      const io_uring_cqe& entry = completions_[head & completion_mask_];
      const Completion completion{entry.user_data, entry.res};
      store(completion_head_, head + 1);
      --under_way_;
      return completion;
    }
    const long taken = ::syscall(SYS_io_uring_enter, fd_.get(), starved ? 0 : queued_,
                                 ended ? 0 : 1, IORING_ENTER_GETEVENTS, nullptr, 0);
    if (taken >= 0) {
      const auto count = starved ? 0U : static_cast<unsigned>(taken);
      queued_ -= count;
      under_way_ += count;
    } else if (errno == EAGAIN && under_way_ > 0) {
      // The kernel has no memory for more requests until one of these has ended.
      starved = true;
    } else if (errno != EINTR) {
      const int code = errno;
      forget_queued();
      throw SystemError(code, "cannot hand reads to the kernel");
    }
  }
}

void Ring::forget_queued() {
  store(submission_tail_, load(submission_tail_) - queued_);
  queued_ = 0;
}

}  // namespace stoker
