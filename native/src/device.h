// A CUDA device: its memory, its stream of copies, and host memory that it can read by itself.
#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "cuda_driver.h"
#include "lanes.h"
#include "pool.h"
#include "region.h"

namespace stoker {

// The primary context, which PyTorch uses too, and one stream for every copy to the device.
class Device {
 public:
  explicit Device(int ordinal, const std::string& driver_path = CudaDriver::default_path);
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device();

  const CudaDriver& driver() const { return driver_; }
  int ordinal() const { return ordinal_; }
  CudaStream stream() const { return stream_; }
  std::string name() const;
  std::size_t total_bytes() const;
  std::size_t free_bytes() const;

  // Makes the device the calling thread's for as long as this lives.
  class Current {
   public:
    explicit Current(const Device& device);
    Current(const Current&) = delete;
    Current& operator=(const Current&) = delete;
    ~Current();

   private:
    const Device& device_;
  };
  // Runs an action of a destructor. Where the device is not to be had nothing is left to undo.
  template <typename Action>
  void attempt(const Action& action) const noexcept {
    if (driver_.context_push_current.attempt(context_) != cuda::success) return;
    action();
    pop();
  }

 private:
  void pop() const noexcept;

  CudaDriver driver_;
  int ordinal_;
  CudaOrdinal handle_ = 0;
  CudaContext context_ = nullptr;
  CudaStream stream_ = nullptr;
};

// Memory of a device, freed once no work on the device can touch it any more.
class DeviceMemory {
 public:
  DeviceMemory(std::shared_ptr<Device> device, std::size_t byte_count);
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory();

  const std::shared_ptr<Device>& device() const { return device_; }
  CudaAddress address() const { return address_; }
  std::size_t size() const { return byte_count_; }

 private:
  std::shared_ptr<Device> device_;
  std::size_t byte_count_;
  CudaAddress address_ = 0;
};

// Host memory that stays in place, so that every device can read it while the processor goes on.
class PinnedRange {
 public:
  PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Pool> pool);
  PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Region> region);
  PinnedRange(const PinnedRange&) = delete;
  PinnedRange& operator=(const PinnedRange&) = delete;
  ~PinnedRange();

  // The last chunk may be short, and is whole pages all the same.
  std::size_t chunk_count() const;
  std::size_t whole_chunk_count() const;
  std::span<std::byte> chunk(std::size_t index) const;

  // What reads into a pool share, or this range's own.
  Lanes* lanes() { return pool_ ? &pool_->lanes() : &own_lanes_; }
  Turns* turns() { return pool_ ? &pool_->turns() : &own_turns_; }

  // As a window it belongs to one load at a time.
  void claim();
  void give_back() noexcept { claimed_.clear(); }

 private:
  PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Pool> pool,
              std::shared_ptr<Region> region, std::span<std::byte> bytes);

  std::shared_ptr<Device> device_;
  std::shared_ptr<Pool> pool_;
  std::shared_ptr<Region> region_;
  std::span<std::byte> bytes_;
  Lanes own_lanes_;
  Turns own_turns_;
  std::atomic_flag claimed_;
};

// A mark in the device's stream: reached once everything that was enqueued before it is done.
class Event {
 public:
  // `device` is current, and outlives the event.
  explicit Event(const Device& device);
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;
  ~Event();

  void record() const;
  // Sleeps, and does not spin, until the mark is reached.
  void synchronize() const;

 private:
  const Device* device_;
  CudaEvent event_ = nullptr;
};

}  // namespace stoker
