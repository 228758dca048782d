// The fake driver is worth what it notices.
#include "fake_cuda.h"

#include <utility>

#include "check.h"
#include "chunk.h"
#include "device.h"

using stoker::chunk_bytes;
using stoker::Device;

TEST(the_fake_driver_sees_what_a_caller_does_wrong) {
  fake_cuda_reset(1, chunk_bytes);
  const Device one(0, STOKER_FAKE_CUDA);
  const stoker::CudaDriver& driver = one.driver();
  stoker::Region region(stoker::page_bytes, false);
  std::byte* const source = region.bytes().data();
  stoker::CudaAddress address = 0;
  auto violations = [before = 0]() mutable {
    return fake_cuda_violation_count() - std::exchange(before, fake_cuda_violation_count());
  };
  CHECK(driver.mem_alloc.attempt(&address, 10) != 0 && violations() == 1);
  const Device::Current current(one);
  driver.mem_alloc(&address, 10);
  const auto& copy = driver.memcpy_host_to_device_async;
  CHECK(copy.attempt(address, source, 10, one.stream()) != 0 && violations() == 1);
  driver.mem_host_register(source, stoker::page_bytes, 0);
  CHECK(copy.attempt(address, source, 11, one.stream()) != 0 && violations() == 1);
  CHECK(copy.attempt(address + 1, source, 10, one.stream()) != 0 && violations() == 1);
  CHECK(violations() == 0 && fake_cuda_leak_count() == 4);
  fake_cuda_hold(true);
  copy(address, source, 10, one.stream());
  source[9] = std::byte{1};
  fake_cuda_hold(false);
  driver.stream_synchronize(one.stream());
  CHECK(violations() == 1);
  fake_cuda_hold(true);
  copy(address, source, 10, one.stream());
  driver.mem_host_unregister(source);
  CHECK(violations() == 1);
  driver.mem_free(address);
  CHECK(violations() == 1);
  fake_cuda_hold(false);
  driver.context_synchronize();
  CHECK(violations() == 1);
  CHECK(driver.mem_free.attempt(address) != 0 && violations() == 1);
  CHECK(driver.mem_host_unregister.attempt(source) != 0 && violations() == 1);
  stoker::CudaEvent event = nullptr;
  driver.event_create(&event, 0);
  driver.event_synchronize(event);
  CHECK(violations() == 1);
  driver.event_destroy(event);
}
