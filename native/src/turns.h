// Who may use a device next: as many at once as keep it busy, the earliest deadline first.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <set>
#include <utility>

namespace stoker {

class Turns {
 public:
  explicit Turns(unsigned at_once) : free_(at_once) {}

  // Held from construction, which waits for it, to destruction.
  class Turn {
   public:
    Turn(Turns& turns, double deadline) : turns_(turns) { turns_.take(deadline); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() { turns_.give(); }

   private:
    Turns& turns_;
  };

  std::size_t waiting_count();

 private:
  void take(double deadline);
  void give();

  std::mutex mutex_;
  std::condition_variable changed_;
  unsigned free_;
  std::uint64_t arrivals_ = 0;
  // Equal deadlines in the order of arrival.
  std::set<std::pair<double, std::uint64_t>> waiting_;
};

}  // namespace stoker
