#include "device_target.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "chunk.h"
#include "error.h"

namespace stoker {

DeviceTarget::DeviceTarget(std::shared_ptr<DeviceMemory> memory, std::shared_ptr<PinnedRange> host,
                           std::optional<std::vector<std::size_t>> chunks,
                           std::shared_ptr<Progress> progress, double wait_seconds)
    : memory_(std::move(memory)),
      host_(std::move(host)),
      progress_(std::move(progress)),
      window_(!chunks),
      wait_seconds_(wait_seconds),
      owner_process_(::getpid()),
      places_(chunks_for(memory_->size())) {
  if (progress_->chunk_count() != places_.size() || (chunks && chunks->size() != places_.size()))
    throw std::invalid_argument("expected as many chunks, and chunks of progress, as the " +
                                std::to_string(places_.size()) + " of the device's memory");
  if (chunks) {
    for (const std::size_t index : *chunks) static_cast<void>(host_->chunk(index));
    std::copy(chunks->begin(), chunks->end(), places_.begin());
  } else {
    for (std::size_t slot = host_->whole_chunk_count(); slot > 0; --slot)
      free_slots_.push_back(slot - 1);
    if (free_slots_.empty())
      throw std::invalid_argument("expected a window of at least one whole chunk");
    host_->claim();
  }
  try {
    publisher_ = std::thread([this] { publish_arrivals(); });
  } catch (const std::system_error& error) {
    if (window_) host_->give_back();
    throw SystemError(error.code().value(), "cannot start a thread");
  }
}

DeviceTarget::~DeviceTarget() {
  // A forked child has the object of the thread but not the thread: nothing to join.
  if (::getpid() != owner_process_) {
    new std::thread(std::move(publisher_));
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  publisher_.join();
  // After an error nobody has waited for the copies, which still read the host's memory.
  const Device& device = *memory_->device();
  if (error_)
    device.attempt([&device] { device.driver().stream_synchronize.attempt(device.stream()); });
  on_their_way_.clear();
  if (window_) host_->give_back();
}

DeviceTarget::Place& DeviceTarget::place(std::size_t ordinal) {
  if (ordinal < places_.size()) return places_[ordinal];
  throw std::invalid_argument("expected a chunk below " + std::to_string(places_.size()) +
                              ", found " + std::to_string(ordinal));
}

std::span<std::byte> DeviceTarget::acquire(std::size_t ordinal,
                                           const std::atomic<bool>& cancelled) {
  std::unique_lock lock(mutex_);
  Place& wanted = place(ordinal);
  const bool in_time = changed_.wait_for(lock, std::chrono::duration<double>(wait_seconds_), [&] {
    return wanted || !free_slots_.empty() || error_ || cancelled;
  });
  if (error_) std::rethrow_exception(error_);
  if (cancelled) throw Cancelled();
  if (!in_time)
    throw SystemError(ETIMEDOUT, "expected a free slot of the window within " +
                                     std::to_string(wait_seconds_) + " s, found " +
                                     std::to_string(on_their_way_.size()) + " of " +
                                     std::to_string(host_->whole_chunk_count()) +
                                     " on their way to the device and the rest being filled");
  if (!wanted) {
    wanted = free_slots_.back();
    free_slots_.pop_back();
  }
  return host_->chunk(*wanted);
}

std::size_t DeviceTarget::room(std::size_t ordinal) const {
  return std::min(host_->chunk(*places_[ordinal]).size(), memory_->size() - ordinal * chunk_bytes);
}

void DeviceTarget::upload() {
  for (std::size_t ordinal = 0; ordinal < places_.size(); ++ordinal)
    deliver(ordinal, std::min(chunk_bytes, memory_->size() - ordinal * chunk_bytes));
  finish();
}

void DeviceTarget::abandon(std::size_t ordinal) noexcept {
  const std::lock_guard lock(mutex_);
  if (!window_ || ordinal >= places_.size() || !places_[ordinal]) return;
  free(*std::exchange(places_[ordinal], std::nullopt));
}

void DeviceTarget::free(std::size_t slot) {
  free_slots_.push_back(slot);
  changed_.notify_all();
}

void DeviceTarget::deliver(std::size_t ordinal, std::size_t byte_count) {
  const std::lock_guard lock(mutex_);
  if (error_) std::rethrow_exception(error_);
  if (!place(ordinal))
    throw std::invalid_argument("expected chunk " + std::to_string(ordinal) +
                                " to be acquired before it is delivered");
  if (byte_count == 0 || byte_count > room(ordinal))
    throw std::invalid_argument("expected from 1 to " + std::to_string(room(ordinal)) +
                                " bytes of chunk " + std::to_string(ordinal) + ", found " +
                                std::to_string(byte_count));
  try {
    enqueue(ordinal, byte_count);
  } catch (...) {
    fail(std::current_exception());
    throw;
  }
  changed_.notify_all();
}

void DeviceTarget::enqueue(std::size_t ordinal, std::size_t byte_count) {
  const Device& device = *memory_->device();
  const Device::Current current(device);
  Event event(device);
  device.driver().memcpy_host_to_device_async(memory_->address() + ordinal * chunk_bytes,
                                              host_->chunk(*places_[ordinal]).data(), byte_count,
                                              device.stream());
  event.record();
  on_their_way_.push_back({ordinal, *places_[ordinal], std::move(event)});
  if (window_) places_[ordinal].reset();
}

void DeviceTarget::fail(std::exception_ptr error) {
  if (error_) return;
  error_ = std::move(error);
  try {
    std::rethrow_exception(error_);
  } catch (const std::exception& reason) {
    progress_->fail(reason.what());
  }
  changed_.notify_all();
}

void DeviceTarget::publish_arrivals() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, nullptr);
  std::unique_lock lock(mutex_);
  try {
    const Device::Current current(*memory_->device());
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !on_their_way_.empty() || error_; });
      if (on_their_way_.empty() || error_) return;
      // Others add behind it meanwhile, which leaves the front where it is.
      const Copy& first = on_their_way_.front();
      lock.unlock();
      first.event.synchronize();
      lock.lock();
      progress_->publish(first.ordinal);
      if (window_) free(first.host_chunk);
      on_their_way_.pop_front();
      changed_.notify_all();
    }
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    fail(std::current_exception());
  }
}

std::span<const std::byte> DeviceTarget::kept(std::size_t ordinal) const {
  if (window_) return {};
  return host_->chunk(places_.at(ordinal).value());
}

void DeviceTarget::cancel() noexcept {
  const std::lock_guard lock(mutex_);
  changed_.notify_all();
}

void DeviceTarget::finish() {
  std::unique_lock lock(mutex_);
  const bool in_time = changed_.wait_for(lock, std::chrono::duration<double>(wait_seconds_),
                                         [this] { return on_their_way_.empty() || error_; });
  if (error_) std::rethrow_exception(error_);
  if (!in_time)
    throw SystemError(ETIMEDOUT, "expected every copy on the device within " +
                                     std::to_string(wait_seconds_) + " s, found " +
                                     std::to_string(on_their_way_.size()) + " on their way");
}

}  // namespace stoker
