#include "turns.h"

namespace stoker {

void Turns::take(double deadline) {
  std::unique_lock lock(mutex_);
  const auto mine = waiting_.emplace(deadline, arrivals_++).first;
  changed_.wait(lock, [&] { return free_ > 0 && waiting_.begin() == mine; });
  waiting_.erase(mine);
  --free_;
  if (free_ > 0 && !waiting_.empty()) changed_.notify_all();
}

void Turns::give() {
  const std::lock_guard lock(mutex_);
  ++free_;
  if (!waiting_.empty()) changed_.notify_all();
}

std::size_t Turns::waiting_count() {
  const std::lock_guard lock(mutex_);
  return waiting_.size();
}

}  // namespace stoker
