#include <cstdio>
#include <exception>

#include "check.h"

int main() {
  for (const check::Test& test : check::tests()) {
    const int before = check::failures();
    try {
      test.run();
    } catch (const std::exception& error) {
      check::report(false, error.what(), test.name, 0);
    }
    std::printf("%s %s\n", check::failures() == before ? "ok  " : "FAIL", test.name);
  }
  return check::failures() == 0 ? 0 : 1;
}
