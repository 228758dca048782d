// Mutates a few seeds for argv[1] seconds; for compilers that bring no fuzzing engine.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

const std::vector<std::string> seeds{
    "{}",
    "{\"__metadata__\":{\"format\":\"pt\",\"a\":\"\\u00e9\\ud83d\\ude00\"},"
    "\"w\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[0,8]}}",
    "{\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[0,3],\"data_offsets\":[1,1]},"
    "\"c\\n\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[1,9]}}   ",
};
const std::vector<std::string> words{
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "[0,8]",
    "18446744073709551615",
    "[",
    "]",
    "{",
    "}",
    "\\u",
    "\\ud800",
    "\xED\xA0\x80",
    "\xC0\x80",
    "null",
    ",",
    ":",
    "\"",
    "F4",
    "-1",
    "1e9",
};

std::string mutate(std::string json, std::mt19937_64& random) {
  const auto below = [&random](std::size_t limit) {
    return static_cast<std::size_t>(random() % limit);
  };
  for (std::size_t count = below(6); count > 0 && !json.empty(); --count) {
    const std::size_t at = below(json.size());
    switch (below(5)) {
      case 0:
        json[at] = static_cast<char>(random());
        break;
      case 1:
        json.erase(at, 1 + below(8));
        break;
      case 2:
        json.insert(at, words[below(words.size())]);
        break;
      case 3:
        json.insert(at, json.substr(below(json.size()), 1 + below(60)));
        break;
      default:
        json.replace(at, 1, words[below(words.size())]);
    }
  }
  return json;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 10;
  const auto begin = std::chrono::steady_clock::now();
  std::mt19937_64 random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  std::uint64_t runs = 0;
  const std::chrono::duration<double> limit(seconds);
  while (std::chrono::steady_clock::now() - begin < limit) {
    const std::string json = mutate(seeds[random() % seeds.size()], random);
    std::uint64_t length = json.size();
    if (random() % 20 == 0) length += random() % 3 - 1;
    std::string file;
    for (int byte = 0; byte < 8; ++byte) file.push_back(static_cast<char>(length >> (8 * byte)));
    file += json + std::string(random() % 12, 'x');
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(file.data()), file.size());
    ++runs;
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(runs));
  return 0;
}
