/* The floor of the rpc rows of tools/bench: the bytes of a call and of its answer over a Unix socket, one blocking
 * process on each side, nothing else.
 *
 *     ping-pong serve SOCKET
 *     ping-pong unary SOCKET CALLS SECONDS     CALLS requests are sent together, then as many answers awaited
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* As many bytes as drive-backup-rpc sends: CALL; MESSAGE and STATUS. */
enum { REQUEST = 72, ANSWER = 236, MOST = 1024 };

static void fail(const char *what) {
    fprintf(stderr, "ping-pong: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Reads `count` bytes; 0 at the end. */
static int take(int fd, char *buffer, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t some = read(fd, buffer + done, count - done);
        if (some < 0) fail("read");
        if (some == 0) return 0;
        done += some;
    }
    return 1;
}

static void put(int fd, const char *buffer, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t some = write(fd, buffer + done, count - done);
        if (some < 0) fail("write");
        done += some;
    }
}

/* Answers all requests that one read brings with one write. */
static void answer(int fd) {
    static char requests[MOST * REQUEST], answers[MOST * ANSWER];
    size_t held = 0;
    for (;;) {
        ssize_t some = read(fd, requests + held, sizeof requests - held);
        if (some < 0) fail("read");
        if (some == 0) return;
        held += some;
        put(fd, answers, held / REQUEST * ANSWER);
        memmove(requests, requests + held / REQUEST * REQUEST, held % REQUEST);
        held %= REQUEST;
    }
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static void load(int fd, int calls, int seconds) {
    static char requests[MOST * REQUEST], answers[MOST * ANSWER];
    const size_t most = 4000000;
    int64_t *times = malloc(most * sizeof *times);
    if (!times) fail("malloc");
    size_t rounds = 0;
    int64_t start = now() + 300000000, end = start + seconds * 1000000000LL, before = now();
    while (before < end) {
        put(fd, requests, (size_t)calls * REQUEST);
        if (!take(fd, answers, (size_t)calls * ANSWER)) fail("the server is gone");
        int64_t after = now();
        if (after >= start && after < end && rounds < most) times[rounds++] = after - before;
        before = after;
    }
    if (rounds == 0) fail("no call ended in time");
    qsort(times, rounds, sizeof *times, ascending);
    printf("{\"calls\": %zu, \"seconds\": %d, \"p50_us\": %.3f, \"p99_us\": %.3f}\n", rounds * calls, seconds,
           times[rounds / 2] / 1000.0, times[rounds * 99 / 100] / 1000.0);
}

int main(int count, char **words) {
    int serves = count == 3 && !strcmp(words[1], "serve"), loads = count == 5 && !strcmp(words[1], "unary");
    int calls = loads ? atoi(words[3]) : 1, seconds = loads ? atoi(words[4]) : 1;
    if ((!serves && !loads) || calls < 1 || calls > MOST || seconds < 1) {
        fprintf(stderr, "usage: ping-pong serve SOCKET | unary SOCKET CALLS SECONDS\n");
        return 64;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(words[2]) >= sizeof address.sun_path) { errno = ENAMETOOLONG; fail(words[2]); }
    strcpy(address.sun_path, words[2]);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) fail("socket");
    if (loads) {
        if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) fail(words[2]);
        load(fd, calls, seconds);
        return 0;
    }
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1) < 0) fail(words[2]);
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0) fail("accept");
        answer(connection);
        close(connection);
    }
}
