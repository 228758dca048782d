// A test is a function that TEST registers; CHECK ends the program's hopes of success.
#pragma once

#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

inline void report(bool holds, const char* text, const char* file, int line) {
  if (holds) return;
  ++failures();
  std::fprintf(stderr, "%s:%d: does not hold: %s\n", file, line, text);
}

// The exception of type E that `action` throws; its absence is a failure.
template <typename E, typename Action>
E thrown(const Action& action, E otherwise, const char* file, int line) {
  try {
    action();
  } catch (const E& error) {
    return error;
  } catch (const std::exception& error) {
    report(false, error.what(), file, line);
    return otherwise;
  }
  report(false, "an exception was expected", file, line);
  return otherwise;
}

}  // namespace check

#define TEST(name)                                                 \
  static void name();                                              \
  static const check::Registration name##_registered(#name, name); \
  static void name()
#define CHECK(...) check::report(static_cast<bool>(__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
#define THROWN(otherwise, ...) check::thrown([&] { __VA_ARGS__; }, otherwise, __FILE__, __LINE__)
