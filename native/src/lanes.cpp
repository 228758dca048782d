#include "lanes.h"

#include <unistd.h>

#include <utility>

namespace stoker {

Lanes::Lanes(std::span<std::byte> memory, unsigned at_once)
    : memory_(memory), made_maximum_(at_once), owner_process_(::getpid()) {}

Lanes::Lane::~Lane() {
  if (ring_ != nullptr) lanes_->give(std::move(ring_));
}

Lanes::Lane Lanes::take() {
  // A forked child shares its parent's rings and would take the parent's completions.
  if (::getpid() != owner_process_) return {};
  const std::lock_guard lock(mutex_);
  if (!idle_.empty()) {
    std::unique_ptr<Ring> ring = std::move(idle_.back());
    idle_.pop_back();
    return {this, std::move(ring)};
  }
  return {this, make()};
}

std::unique_ptr<Ring> Lanes::make() {
  if (refused_ || made_ == made_maximum_) return nullptr;
  std::unique_ptr<Ring> ring = Ring::make();
  refused_ = ring == nullptr;
  if (!refused_) ++made_;
  return ring;
}

void Lanes::give(std::unique_ptr<Ring> ring) {
  const std::lock_guard lock(mutex_);
  if (memory_is_there_) register_with(*ring);
  idle_.push_back(std::move(ring));
}

void Lanes::prepare() {
  const std::lock_guard lock(mutex_);
  memory_is_there_ = true;
  while (std::unique_ptr<Ring> ring = make()) idle_.push_back(std::move(ring));
  for (const std::unique_ptr<Ring>& ring : idle_) register_with(*ring);
}

void Lanes::register_with(Ring& ring) {
  if (ring.has_memory() || pinning_refused_) return;
  registered_ = ring.register_memory(memory_);
  pinning_refused_ = !registered_;
}

bool Lanes::has_registered() const {
  const std::lock_guard lock(mutex_);
  return registered_;
}

}  // namespace stoker
