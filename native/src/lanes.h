// Rings that a pool keeps, its memory registered with each, for whoever reads into it.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "uring.h"

namespace stoker {

class Lanes {
 public:
  Lanes(std::span<std::byte> memory, unsigned at_once);

  // A ring for as long as this lives; null where there is none to be had.
  class Lane {
   public:
    Lane() = default;
    Lane(Lanes* lanes, std::unique_ptr<Ring> ring) : lanes_(lanes), ring_(std::move(ring)) {}
    Lane(Lane&&) noexcept = default;
    Lane& operator=(Lane&&) = delete;
    ~Lane();
    Ring* ring() const { return ring_.get(); }

   private:
    Lanes* lanes_ = nullptr;
    std::unique_ptr<Ring> ring_;
  };

  Lane take();
  // Makes every ring and registers the memory, which faults it in: for a time when all of it is
  // there already.
  void prepare();
  bool has_registered() const;

 private:
  friend class Lane;
  std::unique_ptr<Ring> make();
  void register_with(Ring& ring);
  void give(std::unique_ptr<Ring> ring);

  std::span<std::byte> memory_;
  unsigned made_maximum_;
  pid_t owner_process_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Ring>> idle_;
  unsigned made_ = 0;
  bool refused_ = false;
  bool memory_is_there_ = false;
  bool registered_ = false;
  bool pinning_refused_ = false;
};

}  // namespace stoker
