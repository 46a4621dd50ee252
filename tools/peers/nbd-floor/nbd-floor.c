/* The floor of the nbd rows of tools/bench: what a server costs that does nothing, or no more than one system call a
 * request. One thread answers reads with the same page and drops writes, or reads and writes FILE; all requests that one
 * receive brings are answered with one send.
 *
 *     nbd-floor serve SOCKET [FILE [direct]]           it sleeps while there is nothing to do
 *     nbd-floor serve-awake SOCKET [FILE [direct]]     it never does; `direct`: past the page cache, each waiting for the last
 *
 * It knows what fio's nbd engine asks for, and ends when it is asked for anything else.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* NBD proto.md, "Fixed newstyle negotiation", "Request message", "Structured reply chunk message". */
enum { OPT_ABORT = 2, OPT_GO = 7, OPT_STRUCTURED_REPLY = 8, REP_ACK = 1, REP_INFO = 3 };
enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH };
/* More requests than MOST are never on their way at once, and two parts for each are what sendmsg(2) takes. */
enum { HEADER = 28, LONGEST = 4096, INPUT = 256 << 10, MOST = 512 };

struct client {
    int fd, structured;
    size_t held;
    char input[INPUT];
};

/* The file that is served; -1: none. */
static int file = -1, is_direct;

static void fail(const char *what) {
    fprintf(stderr, "nbd-floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static char *put16(char *to, uint16_t value) { value = htobe16(value); return mempcpy(to, &value, 2); }
static char *put32(char *to, uint32_t value) { value = htobe32(value); return mempcpy(to, &value, 4); }
static char *put64(char *to, uint64_t value) { value = htobe64(value); return mempcpy(to, &value, 8); }
static uint16_t get16(const char *from) { uint16_t value; memcpy(&value, from, 2); return be16toh(value); }
static uint64_t get64(const char *from) { uint64_t value; memcpy(&value, from, 8); return be64toh(value); }
static uint32_t get32(const char *from) { uint32_t value; memcpy(&value, from, 4); return be32toh(value); }

/* Reads `count` bytes; 0 at the end. */
static int take(int fd, char *buffer, size_t count) {
    for (size_t done = 0; done < count;) {
        ssize_t some = recv(fd, buffer + done, count - done, 0);
        if (some < 0) fail("recv");
        if (some == 0) return 0;
        done += some;
    }
    return 1;
}

static void give(int fd, const char *buffer, size_t count) {
    if (send(fd, buffer, count, MSG_NOSIGNAL) != (ssize_t)count) fail("send");
}

static void reply_option(int fd, uint32_t option, uint32_t type, const char *data, uint32_t count) {
    char reply[20], *end = put64(reply, 0x3e889045565a9);
    put32(put32(put32(end, option), type), count);
    give(fd, reply, sizeof reply);
    if (count) give(fd, data, count);
}

/* 1 when the client has chosen the export, whatever its name; 0 when it leaves. */
static int shake_hands(struct client *client) {
    char greeting[18], flags[4], option[16], data[1024], info[12];
    put16(put64(put64(greeting, 0x4e42444d41474943), 0x49484156454f5054), 3);
    give(client->fd, greeting, sizeof greeting);
    if (!take(client->fd, flags, sizeof flags)) return 0;
    while (take(client->fd, option, sizeof option)) {
        uint32_t kind = get32(option + 8), count = get32(option + 12);
        if (count > sizeof data || !take(client->fd, data, count)) return 0;
        switch (kind) {
        case OPT_STRUCTURED_REPLY:
            client->structured = 1;
            reply_option(client->fd, kind, REP_ACK, NULL, 0);
            break;
        case OPT_GO:
            /* Size and flags: HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN. */
            put16(put64(put16(info, 0), 1ULL << 50), 0x10d);
            reply_option(client->fd, kind, REP_INFO, info, sizeof info);
            reply_option(client->fd, kind, REP_ACK, NULL, 0);
            return 1;
        case OPT_ABORT: return 0;
        default: reply_option(client->fd, kind, 0x80000001, NULL, 0);
        }
    }
    return 0;
}

static void send_all(int fd, struct iovec *parts, size_t count) {
    size_t left = 0;
    for (size_t i = 0; i < count; i++) left += parts[i].iov_len;
    while (left > 0) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t some = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (some < 0) fail("sendmsg");
        left -= some;
        while (some > 0) {
            size_t step = (size_t)some < parts->iov_len ? (size_t)some : parts->iov_len;
            parts->iov_base = (char *)parts->iov_base + step;
            parts->iov_len -= step;
            some -= step;
            if (parts->iov_len == 0) parts++, count--;
        }
    }
}

/* Answers what has arrived; 0 when the client leaves. */
static int answer(struct client *client) {
    static _Alignas(LONGEST) char pages[MOST][LONGEST];
    static char headers[MOST * HEADER];
    static struct iovec parts[2 * MOST];
    ssize_t some = recv(client->fd, client->input + client->held, INPUT - client->held, MSG_DONTWAIT);
    if (some < 0) return errno == EAGAIN;
    if (some == 0) return 0;
    client->held += some;
    size_t used = 0, count = 0, answered = 0;
    for (char *next = headers; client->held - used >= HEADER; answered++) {
        const char *request = client->input + used;
        uint16_t type = get16(request + 6);
        uint32_t length = get32(request + 24);
        if (type == CMD_DISC) return 0;
        if (type > CMD_FLUSH || length > LONGEST || answered == MOST) { errno = EPROTO; fail("a request"); }
        size_t whole = HEADER + (type == CMD_WRITE ? length : 0);
        if (client->held - used < whole) break;
        char *page = pages[file < 0 ? 0 : answered];
        const char *payload = request + HEADER;
        off_t offset = get64(request + 16);
        if (type == CMD_WRITE && is_direct) payload = memcpy(page, payload, length);
        if (type == CMD_READ && file >= 0 && pread(file, page, length, offset) != length) fail("a pread, or it was short");
        if (type == CMD_WRITE && file >= 0 && pwrite(file, payload, length, offset) != length) fail("a pwrite, or it was short");
        used += whole;
        char *reply = next;
        if (type == CMD_READ && client->structured) {
            next = put16(put16(put32(next, 0x668e33ef), 1), 1);
            next = mempcpy(next, request + 8, 8);
            next = mempcpy(put32(next, length + 8), request + 16, 8);
        } else {
            next = put32(put32(next, 0x67446698), 0);
            next = mempcpy(next, request + 8, 8);
        }
        parts[count++] = (struct iovec){reply, next - reply};
        if (type == CMD_READ) parts[count++] = (struct iovec){page, length};
    }
    memmove(client->input, client->input + used, client->held - used);
    client->held -= used;
    send_all(client->fd, parts, count);
    return 1;
}

int main(int count, char **words) {
    int is_awake = count > 1 && !strcmp(words[1], "serve-awake");
    if (count < 3 || count > 5 || (count == 5 && strcmp(words[4], "direct"))
        || (!is_awake && strcmp(words[1], "serve"))) {
        fprintf(stderr, "usage: nbd-floor serve|serve-awake SOCKET [FILE [direct]]\n");
        return 64;
    }
    is_direct = count == 5;
    if (count > 3 && (file = open(words[3], O_RDWR | O_CLOEXEC | (is_direct ? O_DIRECT : 0))) < 0) fail(words[3]);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(words[2]) >= sizeof address.sun_path) { errno = ENAMETOOLONG; fail(words[2]); }
    strcpy(address.sun_path, words[2]);
    int door = socket(AF_UNIX, SOCK_STREAM, 0), room = 1 << 20;
    if (door < 0 || bind(door, (struct sockaddr *)&address, sizeof address) < 0 || listen(door, 16) < 0) fail(words[2]);
    int events = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN}, ready[16];
    if (events < 0 || epoll_ctl(events, EPOLL_CTL_ADD, door, &event) < 0) fail("epoll");
    for (;;) {
        int some = epoll_wait(events, ready, 16, is_awake ? 0 : -1);
        if (some < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < some; i++) {
            struct client *client = ready[i].data.ptr;
            if (!client) {
                client = calloc(1, sizeof *client);
                if (!client || (client->fd = accept(door, NULL, NULL)) < 0) fail("accept");
                if (setsockopt(client->fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room) < 0) fail("setsockopt");
                event.data.ptr = client;
                if (shake_hands(client)) {
                    if (epoll_ctl(events, EPOLL_CTL_ADD, client->fd, &event) < 0) fail("epoll_ctl");
                    continue;
                }
            } else if (answer(client)) {
                continue;
            }
            close(client->fd);
            free(client);
        }
    }
}
