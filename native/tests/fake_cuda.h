// How a test steers the fake driver, and what the fake driver saw.
#pragma once

#include <cstddef>

extern "C" {

// Forgets everything that was seen, and offers `devices` devices of `bytes` each.
void fake_cuda_reset(int devices, std::size_t bytes);
// From now on the `nth` call (1 is the next) of `function` returns `code`. The functions that
// release something release it all the same. "copy" is a copy itself: it fails on its way, and
// so does everything that waits on that device, for ever.
void fake_cuda_fail(const char* function, int nth, int code);
// While held no copy begins. Each copy takes `microseconds` longer.
void fake_cuda_hold(bool held);
void fake_cuda_delay(int microseconds);
// How often a function was called since the reset.
int fake_cuda_calls(const char* function);
// What a caller did that the driver's documentation forbids, or that harms: how often, and what.
int fake_cuda_violation_count();
const char* fake_cuda_violation(int index);
// What is held still: memory, registrations, streams, events and contexts.
int fake_cuda_leak_count();
// The most bytes of host memory that were registered at once since the reset.
std::size_t fake_cuda_registered_peak_bytes();
// Copies what lies in a device's memory; false for an address that is none.
bool fake_cuda_read(unsigned long long address, void* target, std::size_t bytes);
}
