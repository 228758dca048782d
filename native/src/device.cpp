#include "device.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

#include "chunk.h"
#include "error.h"

namespace stoker {

Device::Device(int ordinal, const std::string& driver_path)
    : driver_(driver_path), ordinal_(ordinal) {
  driver_.device_get(&handle_, ordinal);
  driver_.primary_context_retain(&context_, handle_);
  try {
    const Current current(*this);
    // Work of others on the default stream must neither wait for copies nor hold them up.
    driver_.stream_create(&stream_, cuda::stream_non_blocking);
  } catch (...) {
    driver_.primary_context_release.attempt(handle_);
    throw;
  }
}

Device::~Device() {
  attempt([this] { driver_.stream_destroy.attempt(stream_); });
  driver_.primary_context_release.attempt(handle_);
}

std::string Device::name() const {
  std::array<char, 256> text{};
  driver_.device_get_name(text.data(), static_cast<int>(text.size() - 1), handle_);
  return text.data();
}

std::size_t Device::total_bytes() const {
  std::size_t bytes = 0;
  driver_.device_total_mem(&bytes, handle_);
  return bytes;
}

std::size_t Device::free_bytes() const {
  const Current current(*this);
  std::size_t free = 0;
  std::size_t total = 0;
  driver_.mem_get_info(&free, &total);
  return free;
}

void Device::pop() const noexcept {
  CudaContext context = nullptr;
  driver_.context_pop_current.attempt(&context);
}

Device::Current::Current(const Device& device) : device_(device) {
  device_.driver_.context_push_current(device_.context_);
}

Device::Current::~Current() { device_.pop(); }

DeviceMemory::DeviceMemory(std::shared_ptr<Device> device, std::size_t byte_count)
    : device_(std::move(device)), byte_count_(byte_count) {
  if (byte_count_ == 0) throw std::invalid_argument("expected at least one byte for the device");
  const Device::Current current(*device_);
  try {
    device_->driver().mem_alloc(&address_, byte_count_);
  } catch (const DeviceError& error) {
    if (!error.is_out_of_memory()) throw;
    throw DeviceError(error.code, error.call,
                      "expected " + std::to_string(byte_count_) + " free bytes on device " +
                          std::to_string(device_->ordinal()) + ", found " +
                          std::to_string(device_->free_bytes()));
  }
}

DeviceMemory::~DeviceMemory() {
  device_->attempt([this] {
    // A tensor is let go when its last kernel is launched, which is before it has run.
    device_->driver().context_synchronize.attempt();
    device_->driver().mem_free.attempt(address_);
  });
}

PinnedRange::PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Pool> pool,
                         std::shared_ptr<Region> region, std::span<std::byte> bytes)
    : device_(std::move(device)),
      pool_(std::move(pool)),
      region_(std::move(region)),
      bytes_(bytes),
      own_lanes_(bytes_, device_turns),
      own_turns_(device_turns) {
  const Device::Current current(*device_);
  device_->driver().mem_host_register(bytes_.data(), bytes_.size(), cuda::host_register_portable);
  if (!pool_) own_lanes_.prepare();
}

PinnedRange::PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Pool> pool)
    : PinnedRange(std::move(device), pool, nullptr,
                  {pool->chunk(0).data(), pool->chunk_count() * chunk_bytes}) {}

PinnedRange::PinnedRange(std::shared_ptr<Device> device, std::shared_ptr<Region> region)
    : PinnedRange(std::move(device), nullptr, region,
                  {region->bytes().data(), round_up(region->bytes().size(), page_bytes)}) {}

PinnedRange::~PinnedRange() {
  device_->attempt([this] { device_->driver().mem_host_unregister.attempt(bytes_.data()); });
}

std::size_t PinnedRange::chunk_count() const { return chunks_for(bytes_.size()); }

std::size_t PinnedRange::whole_chunk_count() const { return bytes_.size() / chunk_bytes; }

std::span<std::byte> PinnedRange::chunk(std::size_t index) const {
  if (index >= chunk_count())
    throw std::invalid_argument("expected a chunk below " + std::to_string(chunk_count()) +
                                ", found " + std::to_string(index));
  const std::size_t begin = index * chunk_bytes;
  return bytes_.subspan(begin, std::min(chunk_bytes, bytes_.size() - begin));
}

void PinnedRange::claim() {
  if (claimed_.test_and_set())
    throw std::invalid_argument("expected a window that no other load uses");
}

Event::Event(const Device& device) : device_(&device) {
  device_->driver().event_create(&event_, cuda::event_blocking_sync | cuda::event_disable_timing);
}

Event::Event(Event&& other) noexcept
    : device_(other.device_), event_(std::exchange(other.event_, nullptr)) {}

Event::~Event() {
  if (event_ == nullptr) return;
  device_->attempt([this] { device_->driver().event_destroy.attempt(event_); });
}

void Event::record() const { device_->driver().event_record(event_, device_->stream()); }

void Event::synchronize() const { device_->driver().event_synchronize(event_); }

}  // namespace stoker
