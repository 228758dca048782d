// How far a load is, in a shared page that other processes wait on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>

#include "file.h"
#include "memory.h"

namespace stoker {

enum class State : std::uint32_t { loading, complete, failed, cancelled };

class Progress {
 public:
  static constexpr std::size_t error_bytes_maximum = 2048;

  // `total_bytes` is the extent of the address space: it ends in the last of `chunk_count` chunks.
  Progress(std::size_t chunk_count, std::uint64_t total_bytes);
  // Joins the page behind a descriptor of another process; `fd` may be closed afterwards.
  static Progress open(int fd);

  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  int fd() const { return file_.get(); }
  std::size_t chunk_count() const { return chunk_count_; }
  std::uint64_t total_bytes() const { return total_bytes_; }
  std::uint64_t watermark_bytes() const;
  State state() const;
  std::string error() const;
  double fetch_seconds() const;
  double load_seconds() const;
  void set_fetch_seconds(double seconds);
  void set_load_seconds(double seconds);
  bool is_ready(std::size_t ordinal) const;

  // Marks a chunk as ready and wakes the waiters.
  void publish(std::size_t ordinal);
  // The first of these three stands; `complete` needs every chunk.
  void complete();
  void fail(std::string_view message);
  void cancel();

  enum class Wait { reached, ended, timed_out, interrupted };
  // Until the watermark is there, the load is no longer loading, a signal came, or time is up.
  Wait wait(std::uint64_t watermark_bytes, double timeout_seconds) const;
  // The same for the chunks from `first` to the one before `last`, whatever lies before them.
  Wait wait_for_chunks(std::size_t first, std::size_t last, double timeout_seconds) const;

 private:
  struct Page;

  explicit Progress(Descriptor file);

  Page& page() const;
  std::uint64_t& ready_word(std::size_t ordinal) const;
  void check(std::size_t ordinal) const;
  void finish(State state);
  void wake() const;
  template <typename Reached>
  Wait wait_until(Reached reached, double timeout_seconds) const;

  Descriptor file_;
  Memory memory_;
  // Copies, because another process can write to the page.
  std::size_t chunk_count_;
  std::uint64_t total_bytes_;
  std::mutex mutex_;
};

}  // namespace stoker
