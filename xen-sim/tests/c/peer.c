/*
 * One end of a vchan over Debian's libxenvchan.
 *
 *   peer server DOMID PATH LEFT_MIN RIGHT_MIN COMMAND...
 *   peer client DOMID PATH COMMAND...
 *
 * Both ends of a channel are given the same command:
 *   exchange BYTES CHUNK   the client sends BYTES in writes of CHUNK, then the server does; each checks every byte
 *   hold                   waits until the other end is gone
 *   keep                   stays until it is killed
 *   pump BYTES CHUNK       the client sends BYTES in writes of CHUNK; the server prints "seconds" and the time it took, both, if
 *                          compiled with COUNT_NOTIFICATIONS, print "notifications" and how many they sent
 *   ping COUNT BYTES       the client prints "seconds" and the mean time of a round trip of BYTES
 *
 * The server prints "ready" when a client can connect, both print "connected ORDER_LEFT ORDER_RIGHT".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <libxenvchan.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct libxenvchan *vchan;

static void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

#ifdef COUNT_NOTIFICATIONS
static unsigned long notifications;

/* Between libxenvchan and libxenevtchn: counts. */
int xenevtchn_notify(xenevtchn_handle *events, evtchn_port_t port)
{
    static int (*notify)(xenevtchn_handle *, evtchn_port_t);

    if (!notify)
        notify = dlsym(RTLD_NEXT, "xenevtchn_notify");
    notifications++;
    return notify(events, port);
}
#endif

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A byte that depends on the whole position, so that lost, repeated and swapped blocks are all seen. */
static unsigned char pattern(int seed, size_t at)
{
    unsigned long long x = (at + 1) * 0x9e3779b97f4a7c15ull + seed;
    return (x >> 56) ^ (x >> 29);
}

static void write_all(const void *data, size_t size)
{
    if (libxenvchan_write(vchan, data, size) != (int)size)
        fail("libxenvchan_write");
}

static size_t read_some(void *data, size_t size)
{
    int got = libxenvchan_read(vchan, data, size);
    if (got <= 0)
        fail("libxenvchan_read");
    return got;
}

static void read_all(void *data, size_t size)
{
    for (size_t got = 0; got < size;)
        got += read_some((char *)data + got, size - got);
}

static void send_pattern(int seed, size_t total, size_t chunk)
{
    unsigned char *buffer = malloc(chunk);
    for (size_t at = 0; at < total;) {
        size_t size = total - at < chunk ? total - at : chunk;
        for (size_t i = 0; i < size; i++)
            buffer[i] = pattern(seed, at + i);
        write_all(buffer, size);
        at += size;
    }
    free(buffer);
}

static void check_pattern(int seed, size_t total, size_t chunk)
{
    unsigned char *buffer = malloc(chunk);
    for (size_t at = 0; at < total;) {
        size_t got = read_some(buffer, total - at < chunk ? total - at : chunk);
        for (size_t i = 0; i < got; i++) {
            if (buffer[i] != pattern(seed, at + i)) {
                fprintf(stderr, "byte %zu is wrong\n", at + i);
                exit(1);
            }
        }
        at += got;
    }
    free(buffer);
}

static void pump(int is_server, size_t total, size_t chunk)
{
    char *buffer = calloc(1, chunk);
    char go = 0;
    if (is_server) {
        double start;
        write_all(&go, 1);
        read_all(buffer, chunk);
        start = now();
        for (size_t got = 0; got < total;)
            got += read_some(buffer, total - got < chunk ? total - got : chunk);
        printf("seconds %.9f\n", now() - start);
        write_all(&go, 1);
    } else {
        read_all(&go, 1);
        write_all(buffer, chunk);
        for (size_t sent = 0; sent < total; sent += chunk)
            write_all(buffer, total - sent < chunk ? total - sent : chunk);
        read_all(&go, 1);
    }
#ifdef COUNT_NOTIFICATIONS
    printf("notifications %lu\n", notifications);
#endif
    free(buffer);
}

static void ping(int is_server, size_t count, size_t size)
{
    char *buffer = calloc(1, size);
    double start = now();
    for (size_t i = 0; i < count; i++) {
        if (is_server) {
            read_all(buffer, size);
            write_all(buffer, size);
        } else {
            write_all(buffer, size);
            read_all(buffer, size);
        }
    }
    if (!is_server)
        printf("seconds %.9f\n", (now() - start) / count);
    free(buffer);
}

int main(int argc, char **argv)
{
    int is_server = argc > 1 && !strcmp(argv[1], "server");
    int rest = is_server ? 6 : 4;
    const char *command;
    size_t a, b;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc <= rest) {
        fprintf(stderr, "usage: see the source\n");
        return 2;
    }
    command = argv[rest];
    a = argc > rest + 1 ? strtoull(argv[rest + 1], NULL, 0) : 0;
    b = argc > rest + 2 ? strtoull(argv[rest + 2], NULL, 0) : 0;

    if (is_server)
        vchan = libxenvchan_server_init(NULL, atoi(argv[2]), argv[3], strtoull(argv[4], NULL, 0),
                                        strtoull(argv[5], NULL, 0));
    else
        vchan = libxenvchan_client_init(NULL, atoi(argv[2]), argv[3]);
    if (!vchan)
        fail("init");
    vchan->blocking = 1;
    if (is_server) {
        printf("ready\n");
        while (libxenvchan_is_open(vchan) == 2)
            libxenvchan_wait(vchan);
    }
    printf("connected %d %d\n", is_server ? vchan->read.order : vchan->write.order,
           is_server ? vchan->write.order : vchan->read.order);

    if (!strcmp(command, "exchange")) {
        if (is_server) {
            check_pattern(1, a, b);
            send_pattern(2, a, b);
        } else {
            send_pattern(1, a, b);
            check_pattern(2, a, b);
        }
        printf("exchanged\n");
    } else if (!strcmp(command, "hold")) {
        while (libxenvchan_is_open(vchan))
            if (libxenvchan_wait(vchan))
                fail("libxenvchan_wait");
        printf("closed\n");
    } else if (!strcmp(command, "keep")) {
        for (;;)
            if (libxenvchan_wait(vchan))
                fail("libxenvchan_wait");
    } else if (!strcmp(command, "pump")) {
        pump(is_server, a, b);
    } else if (!strcmp(command, "ping")) {
        ping(is_server, a, b);
    } else {
        fprintf(stderr, "%s: no such command\n", command);
        return 2;
    }
    libxenvchan_close(vchan);
    return 0;
}
