/* A worker in C for tests: speaks the wire format of bblab/latency/wire.py and computes nothing of a net.
 *
 * `--about` and `--speedometer N` answer as bblab's runner does. Otherwise what it does depends on the first byte of the first model's file: H hangs after the first round, G prints garbage,
 * C crashes, anything else is a good worker. `models` and `orders` are found by counting brackets.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static volatile uint64_t sink;

static void spin(int steps) {
    uint64_t x = 88172645463325252ull;
    for (int i = 0; i < steps; i++) x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    sink = x;
}

static char line[1 << 20];

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--about")) {
        printf("BBLAB {\"kind\": \"about\", \"wire\": 2, \"protocol\": 2, \"speedometer\": \"wire-runner\"}\n");
        return 0;
    }
    if (argc > 2 && !strcmp(argv[1], "--speedometer")) {
        for (int n = 0; n < atoi(argv[2]); n++) {
            double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
            spin(20000);
            cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu, wall = now(CLOCK_MONOTONIC) - wall;
            printf("BBLAB {\"kind\": \"speed\", \"round\": %d, \"wall_s\": %.9f, \"cpu_s\": %.9f}\n", n, wall, cpu);
        }
        return 0;
    }
    if (!fgets(line, sizeof line, stdin)) return 2;
    char *orders = strstr(line, "\"orders\": [");
    char what = 0, *path = strstr(line, "\"path\": \"");
    if (!orders) return 2;
    if (path) {
        path += 9;
        char *end = strchr(path, '"');
        *end = 0;
        FILE *model = fopen(path, "r");
        if (!model) {
            printf("BBLAB {\"kind\": \"error\", \"message\": \"cannot open %s\"}\n", path);
            return 1;
        }
        what = (char)fgetc(model);
        fclose(model);
        *end = '"';
    }
    printf("BBLAB {\"kind\": \"hello\", \"wire\": 2, \"protocol\": 2, \"runtime\": \"ncnn\", \"runtime_version\": \"0\", "
           "\"precision\": \"float32\", \"speedometer\": \"wire-runner\", \"extra\": [1]}\n");
    if (what == 'G') printf("WARNING: linker: garbage \x80\xff here\nmore\n");
    printf("BBLAB {\"kind\": \"ready\", \"models\": 1}\n");
    int round = 0;
    char *at = orders + 11;
    for (;; round++) {
        double wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
        spin(20000);
        cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu, wall = now(CLOCK_MONOTONIC) - wall;
        printf("BBLAB {\"kind\": \"speed\", \"round\": %d, \"wall_s\": %.9f, \"cpu_s\": %.9f}\n", round, wall, cpu);
        fflush(stdout);
        while (*at == ',' || *at == ' ') at++;
        if (*at != '[') break;
        for (at++; *at && *at != ']';) {
            int model = (int)strtol(at, &at, 10);
            while (*at == ',' || *at == ' ') at++;
            for (int n = 0; n < 4; n++) { /* one cold call, three warm ones */
                wall = now(CLOCK_MONOTONIC), cpu = now(CLOCK_PROCESS_CPUTIME_ID);
                spin(40000);
                cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu, wall = now(CLOCK_MONOTONIC) - wall;
                printf("BBLAB {\"kind\": \"call\", \"round\": %d, \"model\": %d, \"state\": \"%s\", \"wall_s\": %.9f, "
                       "\"cpu_s\": %.9f}\n", round, model, n ? "warm" : "cold", wall, cpu);
            }
        }
        fflush(stdout);
        if (*at) at++;
        if (what == 'H') sleep(600);
        if (what == 'C') abort();
    }
    printf("BBLAB {\"kind\": \"end\", \"rounds\": %d}\n", round);
    return 0;
}
