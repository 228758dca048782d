#include "device.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "chunk.h"
#include "device_target.h"
#include "error.h"
#include "fake_cuda.h"
#include "workers.h"

using stoker::chunk_bytes;
using stoker::Device;
using stoker::DeviceError;
using stoker::DeviceMemory;
using stoker::DeviceTarget;
using stoker::PinnedRange;
using stoker::Progress;

namespace {

constexpr std::size_t chunk_count = 6;
constexpr std::size_t total_bytes = (chunk_count - 1) * chunk_bytes + 9'001;
// Bytes of each chunk that the tests fill and copy; the rest is whatever it is.
constexpr std::size_t filled_bytes = 9'001;
const std::atomic<bool> never{false};

std::byte expected_byte(std::size_t ordinal, std::size_t offset) {
  return static_cast<std::byte>(ordinal * 31 + offset * 7 + offset / 256 + 1);
}

void fill(std::span<std::byte> memory, std::size_t ordinal) {
  for (std::size_t at = 0; at < filled_bytes; ++at) memory[at] = expected_byte(ordinal, at);
}

bool has_arrived(const DeviceMemory& memory, std::size_t ordinal) {
  std::vector<std::byte> found(filled_bytes);
  if (!fake_cuda_read(memory.address() + ordinal * chunk_bytes, found.data(), filled_bytes))
    return false;
  for (std::size_t at = 0; at < filled_bytes; ++at)
    if (found[at] != expected_byte(ordinal, at)) return false;
  return true;
}

// At its end the driver must have seen nothing wrong, and hold nothing.
class Driver {
 public:
  explicit Driver(int devices = 2) { fake_cuda_reset(devices, std::size_t{1} << 30); }
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;
  ~Driver() {
    if (leaks_expected_) return;
    for (int index = 0; index < fake_cuda_violation_count(); ++index)
      check::report(false, fake_cuda_violation(index), "fake driver", index);
    CHECK(fake_cuda_leak_count() == 0);
  }
  void expect_leaks() { leaks_expected_ = true; }

 private:
  bool leaks_expected_ = false;
};

std::shared_ptr<Device> device(int ordinal = 0) {
  return std::make_shared<Device>(ordinal, STOKER_FAKE_CUDA);
}

// One load through a window to one device.
struct Stage {
  std::shared_ptr<DeviceMemory> memory;
  std::shared_ptr<Progress> progress = std::make_shared<Progress>(chunk_count, total_bytes);
  std::shared_ptr<DeviceTarget> target;

  Stage(const std::shared_ptr<Device>& on, std::size_t slots, double wait_seconds = 60)
      : memory(std::make_shared<DeviceMemory>(on, total_bytes)),
        target(std::make_shared<DeviceTarget>(memory, window(on, slots), std::nullopt, progress,
                                              wait_seconds)) {}

  static std::shared_ptr<PinnedRange> window(const std::shared_ptr<Device>& on, std::size_t slots) {
    return std::make_shared<PinnedRange>(
        on, std::make_shared<stoker::Region>(slots * chunk_bytes, true));
  }
  void bring(std::size_t ordinal, const std::atomic<bool>& cancelled = never) const {
    fill(target->acquire(ordinal, cancelled), ordinal);
    target->deliver(ordinal, filled_bytes);
  }
  void load(unsigned threads) const {
    // Every third first, so that the watermark has gaps to wait for.
    stoker::run_parallel(chunk_count, threads,
                         [this](std::size_t index) { bring((index * 5 + 2) % chunk_count); });
  }
  bool is_whole() const {
    for (std::size_t ordinal = 0; ordinal < chunk_count; ++ordinal)
      if (!has_arrived(*memory, ordinal)) return false;
    return progress->watermark_bytes() == total_bytes;
  }
};

void load_once() {
  const Stage stage(device(), 2);
  stage.load(3);
  stage.target->finish();
  CHECK(stage.is_whole());
}

}  // namespace

TEST(a_model_larger_than_the_window_arrives_whole) {
  for (const std::size_t slots : {1U, 2U, 4U})
    for (unsigned threads = 1; threads <= 8; ++threads) {
      const Driver driver;
      const Stage stage(device(), slots);
      stage.load(threads);
      CHECK(stage.progress->wait(total_bytes, 20) == Progress::Wait::reached);
      CHECK(stage.is_whole());
      CHECK(fake_cuda_registered_peak_bytes() == slots * chunk_bytes);
    }
}

TEST(slow_copies_never_give_a_slot_back_too_soon) {
  const Driver driver;
  const Stage stage(device(), 2);
  fake_cuda_delay(3'000);
  stage.load(4);
  stage.target->finish();
  CHECK(stage.is_whole());
}

TEST(the_watermark_is_never_ahead_of_a_copy) {
  const Driver driver;
  const Stage stage(device(), chunk_count);
  fake_cuda_hold(true);
  stage.load(2);
  CHECK(stage.progress->wait(1, 0.05) == Progress::Wait::timed_out);
  fake_cuda_delay(2'000);
  fake_cuda_hold(false);
  for (std::size_t ready = 1; ready <= chunk_count; ++ready) {
    const std::size_t wanted = std::min(ready * chunk_bytes, total_bytes);
    CHECK(stage.progress->wait(wanted, 20) == Progress::Wait::reached);
    CHECK(has_arrived(*stage.memory, ready - 1));
  }
  stage.target->finish();
  CHECK(stage.is_whole());
}

TEST(one_pinned_pool_serves_two_devices_at_once) {
  const Driver driver;
  auto pool = std::make_shared<stoker::Pool>(chunk_count * chunk_bytes);
  auto pinned = std::make_shared<PinnedRange>(device(0), pool);
  std::vector<std::size_t> chunks;
  for (std::size_t ordinal = 0; ordinal < chunk_count; ++ordinal) {
    chunks.push_back(chunk_count - 1 - ordinal);
    fill(pool->chunk(chunks.back()), ordinal);
  }
  std::vector<std::jthread> loads;
  for (const int ordinal : {0, 1})
    loads.emplace_back([&pinned, &chunks, ordinal] {
      auto memory = std::make_shared<DeviceMemory>(device(ordinal), total_bytes);
      auto progress = std::make_shared<Progress>(chunk_count, total_bytes);
      DeviceTarget target(memory, pinned, chunks, progress);
      for (std::size_t at = 0; at < chunk_count; ++at) target.deliver(at, filled_bytes);
      target.finish();
      for (std::size_t at = 0; at < chunk_count; ++at) CHECK(has_arrived(*memory, at));
      CHECK(progress->watermark_bytes() == total_bytes);
    });
  loads.clear();
  CHECK(fake_cuda_calls("cuMemHostRegister_v2") == 1);
}

TEST(two_loads_share_one_device) {
  const Driver driver;
  const auto shared = device();
  const Stage first(shared, 2);
  const Stage second(shared, 1);
  std::jthread other([&second] { second.load(2); });
  first.load(2);
  other.join();
  first.target->finish();
  second.target->finish();
  CHECK(first.is_whole() && second.is_whole());
  CHECK(fake_cuda_calls("cuStreamCreate") == 1);
}

TEST(a_cancelled_load_leaves_no_one_waiting) {
  const Driver driver;
  const Stage stage(device(), 2);
  fake_cuda_hold(true);
  std::atomic<bool> cancelled{false};
  std::atomic<int> ended{0};
  std::vector<std::jthread> threads;
  for (std::size_t ordinal = 0; ordinal < 5; ++ordinal)
    threads.emplace_back([&, ordinal] {
      try {
        stage.bring(ordinal, cancelled);
      } catch (const stoker::Cancelled&) {
        ++ended;
      }
    });
  while (fake_cuda_calls("cuEventRecord") < 2) std::this_thread::yield();
  cancelled = true;
  stage.target->cancel();
  threads.clear();
  CHECK(ended == 3);
  THROWN(stoker::Cancelled(), stage.target->acquire(5, cancelled));
  fake_cuda_hold(false);
}

TEST(an_abandoned_chunk_gives_its_slot_back) {
  const Driver driver;
  const Stage stage(device(), 1);
  stage.target->acquire(0, never);
  stage.target->abandon(0);
  stage.target->abandon(0);
  stage.load(1);
  stage.target->finish();
  CHECK(stage.is_whole());
}

TEST(a_window_that_stays_full_is_an_error) {
  const Driver driver;
  const Stage stage(device(), 1, 0.02);
  stage.target->acquire(0, never);
  CHECK(THROWN(stoker::SystemError(0, ""), stage.target->acquire(1, never)).code == ETIMEDOUT);
  fake_cuda_hold(true);
  stage.target->deliver(0, filled_bytes);
  CHECK(THROWN(stoker::SystemError(0, ""), stage.target->finish()).code == ETIMEDOUT);
  fake_cuda_hold(false);
}

TEST(misuse_of_a_target_is_refused) {
  const Driver driver;
  const auto shared = device();
  const auto window = Stage::window(shared, 1);
  auto memory = std::make_shared<DeviceMemory>(shared, chunk_bytes + 5);
  auto progress = std::make_shared<Progress>(2, chunk_bytes + 5);
  DeviceTarget target(memory, window, std::nullopt, progress);
  const std::invalid_argument none("");
  THROWN(none, DeviceTarget(memory, window, std::nullopt, progress));
  THROWN(none, DeviceTarget(memory, window, std::vector<std::size_t>{0}, progress));
  THROWN(none, DeviceTarget(memory, window, std::vector<std::size_t>{0, 1}, progress));
  THROWN(none, DeviceTarget(memory, window, std::nullopt, std::make_shared<Progress>(1, 5)));
  THROWN(none, target.acquire(2, never));
  THROWN(none, target.deliver(1, 5));
  target.acquire(1, never);
  THROWN(none, target.deliver(1, 6));
  THROWN(none, target.deliver(1, 0));
  target.deliver(1, 5);
  THROWN(none, target.deliver(1, 5));
  THROWN(none, DeviceMemory(shared, 0));
}

TEST(a_target_that_goes_waits_for_its_copies) {
  const Driver driver;
  std::shared_ptr<DeviceMemory> memory;
  std::jthread release;
  {
    const Stage stage(device(), 2);
    memory = stage.memory;
    fake_cuda_hold(true);
    stage.bring(3);
    stage.bring(4);
    release = std::jthread([] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      fake_cuda_hold(false);
    });
  }
  // The memory holds its device, and nothing else, while someone has it.
  CHECK(has_arrived(*memory, 3) && has_arrived(*memory, 4));
  CHECK(fake_cuda_leak_count() == 3);
}

TEST(a_copy_that_fails_on_its_way_fails_the_load_with_its_cause) {
  const Driver driver;
  const Stage stage(device(), 1);
  fake_cuda_fail("copy", 2, 700);
  CHECK(THROWN(DeviceError(0, "", ""), stage.load(3)).code == 700);
  CHECK(THROWN(DeviceError(0, "", ""), stage.target->finish()).code == 700);
  CHECK(THROWN(DeviceError(0, "", ""), stage.target->acquire(0, never)).code == 700);
  CHECK(stage.progress->state() == stoker::State::failed);
  CHECK(stage.progress->error().find("(700)") != std::string::npos);
  CHECK(stage.progress->watermark_bytes() < total_bytes);
}

TEST(every_function_of_the_driver_may_fail) {
  constexpr const char* functions[] = {"cuInit",
                                       "cuDeviceGet",
                                       "cuDevicePrimaryCtxRetain",
                                       "cuDevicePrimaryCtxRelease_v2",
                                       "cuCtxPushCurrent_v2",
                                       "cuCtxPopCurrent_v2",
                                       "cuCtxSynchronize",
                                       "cuMemAlloc_v2",
                                       "cuMemFree_v2",
                                       "cuMemHostRegister_v2",
                                       "cuMemHostUnregister",
                                       "cuMemcpyHtoDAsync_v2",
                                       "cuStreamCreate",
                                       "cuStreamDestroy_v2",
                                       "cuEventCreate",
                                       "cuEventRecord",
                                       "cuEventSynchronize",
                                       "cuEventDestroy_v2"};
  for (const char* function : functions) {
    int calls = 0;
    {
      const Driver driver;
      load_once();
      calls = fake_cuda_calls(function);
      CHECK(calls > 0);
    }
    for (int nth = 1; nth <= calls; ++nth) {
      Driver driver;
      fake_cuda_fail(function, nth, 999);
      try {
        load_once();
        // Only a context that cannot be had keeps a destructor from its work.
        if (std::strcmp(function, "cuCtxPushCurrent_v2") == 0) driver.expect_leaks();
      } catch (const DeviceError& error) {
        CHECK(error.code == 999 && error.call == function);
      }
    }
  }
}

TEST(a_full_device_is_told_apart) {
  const Driver driver;
  const auto shared = device();
  const DeviceMemory first(shared, 1000);
  const auto error = THROWN(DeviceError(0, "", ""), DeviceMemory(shared, std::size_t{1} << 30));
  CHECK(error.is_out_of_memory());
  CHECK(std::string(error.what()).find("found 1073740824") != std::string::npos);
  CHECK(shared->free_bytes() == 1'073'740'824 && shared->total_bytes() == std::size_t{1} << 30);
  CHECK(shared->name() == "Fake 0");
}

TEST(a_machine_without_a_driver_has_no_devices) {
  const Driver driver(0);
  CHECK(stoker::device_count(STOKER_FAKE_CUDA) == 0);
  CHECK(stoker::device_count("libnone.so.1") == 0);
  CHECK(THROWN(DeviceError(0, "", ""), Device(0, "libnone.so.1")).call == "dlopen");
  CHECK(THROWN(DeviceError(0, "", ""), Device(0, "libm.so.6")).call == "dlsym");
  CHECK(THROWN(DeviceError(0, "", ""), Device(0, STOKER_FAKE_CUDA)).code == 100);
  fake_cuda_reset(2, 1);
  CHECK(stoker::device_count(STOKER_FAKE_CUDA) == 2);
  CHECK(THROWN(DeviceError(0, "", ""), Device(2, STOKER_FAKE_CUDA)).code == 101);
}
