// Chunks on their way to a device: each is published when its copy has arrived, and not before.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "device.h"
#include "progress.h"
#include "target.h"

namespace stoker {

// reader --acquire--> host chunk --deliver--> stream: copy, event --event reached--> published
//                                                                  '--> the slot is free again
class DeviceTarget final : public Target {
 public:
  static constexpr double wait_seconds_maximum = 300;

  // Chunk i ends at byte i x chunk_bytes of `memory`. With `chunks` it passes through, and stays
  // in, chunk `chunks[i]` of `host`; without, `host` is a window of which each whole chunk is a
  // slot, used anew when its copy has arrived. Then a thread must deliver or abandon what it
  // acquired before it acquires more than there are slots for.
  DeviceTarget(std::shared_ptr<DeviceMemory> memory, std::shared_ptr<PinnedRange> host,
               std::optional<std::vector<std::size_t>> chunks, std::shared_ptr<Progress> progress,
               double wait_seconds = wait_seconds_maximum);
  // Waits for the copies that are on their way.
  ~DeviceTarget() override;

  std::size_t chunk_count() const override { return places_.size(); }
  std::span<std::byte> acquire(std::size_t ordinal, const std::atomic<bool>& cancelled) override;
  void abandon(std::size_t ordinal) noexcept override;
  void deliver(std::size_t ordinal, std::size_t byte_count) override;
  // Delivers every chunk as it lies in `host`, and waits until all have arrived.
  void upload();
  // Throws what went wrong on the way.
  void finish() override;
  void cancel() noexcept override;
  std::span<const std::byte> kept(std::size_t ordinal) const override;
  Lanes* lanes() override { return host_->lanes(); }
  Turns* turns() override { return host_->turns(); }

 private:
  struct Copy {
    std::size_t ordinal;
    std::size_t host_chunk;
    Event event;
  };

  using Place = std::optional<std::size_t>;

  Place& place(std::size_t ordinal);
  std::size_t room(std::size_t ordinal) const;
  void free(std::size_t slot);
  void enqueue(std::size_t ordinal, std::size_t byte_count);
  void fail(std::exception_ptr error);
  void publish_arrivals();

  std::shared_ptr<DeviceMemory> memory_;
  std::shared_ptr<PinnedRange> host_;
  std::shared_ptr<Progress> progress_;
  const bool window_;
  const double wait_seconds_;
  const int owner_process_;

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Place> places_;  // each chunk's chunk of `host_`
  std::vector<std::size_t> free_slots_;
  std::deque<Copy> on_their_way_;
  std::exception_ptr error_;
  bool stopping_ = false;

  std::thread publisher_;
};

}  // namespace stoker
