/*
 * What our libxenvchan promises beyond Xen's: errno, handles that are checked, and the functions of libxenvchan-extra.h.
 * Build: gcc extra-xenvchan.c -lxenvchan -lpthread
 */
#define _GNU_SOURCE
#include "check.h"
#include <fcntl.h>
#include <libxenvchan-extra.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define PATH "data/vchan/2/7"
#define FULL_PATH "/local/domain/1/" PATH

static struct libxenvchan *server, *client;
static char bytes[1 << 17], got[1 << 17];

static struct libxenvchan *serve(size_t left, size_t right)
{
    setenv("XENSIM_DOMID", "1", 1);
    return libxenvchan_server_init(NULL, 2, PATH, left, right);
}

static struct libxenvchan *join(void)
{
    setenv("XENSIM_DOMID", "2", 1);
    return libxenvchan_client_init(NULL, 1, FULL_PATH);
}

static void meet(size_t left, size_t right)
{
    CHECK(server = serve(left, right));
    CHECK(client = join());
}

static void part(void)
{
    libxenvchan_close(client);
    libxenvchan_close(server);
}

static int poll_for(struct libxenvchan *end, int milliseconds)
{
    struct pollfd event = { .fd = libxenvchan_fd_for_select(end), .events = POLLIN };
    return poll(&event, 1, milliseconds);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void no_handle(void)
{
    struct libxenvchan *none = NULL, *closed;
    FAILS(libxenvchan_read(none, got, 1), -1, EINVAL);
    FAILS(libxenvchan_recv(none, got, 1), -1, EINVAL);
    FAILS(libxenvchan_write(none, got, 1), -1, EINVAL);
    FAILS(libxenvchan_send(none, got, 1), -1, EINVAL);
    FAILS(libxenvchan_wait(none), -1, EINVAL);
    FAILS(libxenvchan_wait_timeout(none, 1), -1, EINVAL);
    FAILS(libxenvchan_fd_for_select(none), -1, EINVAL);
    FAILS(libxenvchan_is_open(none), 0, EINVAL);
    FAILS(libxenvchan_data_ready(none), -1, EINVAL);
    FAILS(libxenvchan_buffer_space(none), -1, EINVAL);
    FAILS(libxenvchan_read_from_fd(none, 0, 1), -1, EINVAL);
    FAILS(libxenvchan_write_to_fd(none, 0, 1), -1, EINVAL);
    libxenvchan_close(none);

    CHECK(closed = serve(0, 0));
    libxenvchan_close(closed);
    FAILS(libxenvchan_read(closed, got, 1), -1, EBADF);
    FAILS(libxenvchan_is_open(closed), 0, EBADF);
    libxenvchan_close(closed);
    int error = 0;
    const char *text = libxenvchan_last_error(&error);
    CHECK(text && strstr(text, "closed") && error == EBADF);
}

static void no_channel(void)
{
    setenv("XENSIM_DOMID", "1", 1);
    FAILS(libxenvchan_server_init(NULL, 2, NULL, 0, 0), NULL, EINVAL);
    FAILS(libxenvchan_server_init(NULL, 1, PATH, 0, 0), NULL, EINVAL);
    FAILS(libxenvchan_server_init(NULL, -1, PATH, 0, 0), NULL, EINVAL);
    FAILS(libxenvchan_server_init(NULL, 0x7ff0, PATH, 0, 0), NULL, EINVAL);
    FAILS(libxenvchan_server_init(NULL, 2, PATH, (1 << 20) + 1, 0), NULL, EINVAL);
    FAILS(libxenvchan_client_init(NULL, 2, "/local/domain/2/data/none"), NULL, ENOENT);
    CHECK(strstr(libxenvchan_last_error(NULL), "domain 2 offers no vchan at /local/domain/2/data/none"));
}

static void errors(void)
{
    meet(0, 0);
    FAILS(libxenvchan_read(server, NULL, 1), -1, EINVAL);
    FAILS(libxenvchan_write(server, NULL, 1), -1, EINVAL);
    server->blocking = 1;
    FAILS(libxenvchan_recv(server, got, 5000), -1, EMSGSIZE);
    FAILS(libxenvchan_send(server, got, 5000), -1, EMSGSIZE);
    CHECK(strstr(libxenvchan_last_error(NULL), "a ring of 2048 bytes never holds 5000 at once"));
    libxenvchan_close(client);
    FAILS(libxenvchan_read(server, got, 1), -1, EPIPE);
    FAILS(libxenvchan_recv(server, got, 1), -1, EPIPE);
    FAILS(libxenvchan_write(server, got, 1), -1, EPIPE);
    FAILS(libxenvchan_send(server, got, 1), -1, EPIPE);
    libxenvchan_close(server);
}

/* Impossible indices are an error at once, and the channel is not open any more. */
static void violation(void)
{
    meet(0, 0);
    client->ring->right.prod = 5000;
    FAILS(libxenvchan_read(client, got, 1), -1, EPROTO);
    FAILS(libxenvchan_data_ready(client), -1, EPROTO);
    FAILS(libxenvchan_is_open(client), 0, EPROTO);
    CHECK(strstr(libxenvchan_last_error(NULL), "right ring of 2048 bytes: prod 0x1388"));
    part();
}

static void timeouts(void)
{
    meet(0, 0);
    while (poll_for(server, 10) == 1)
        CHECK(!libxenvchan_wait(server));
    double begin = now();
    FAILS(libxenvchan_wait_timeout(server, 50), -1, ETIMEDOUT);
    CHECK(now() - begin >= 0.05 && now() - begin < 20);
    CHECK(!libxenvchan_data_ready(server));
    CHECK(libxenvchan_write(client, "x", 1) == 1);
    CHECK(!libxenvchan_wait_timeout(server, 20000));
    CHECK(!libxenvchan_wait_timeout(client, 0) || errno == ETIMEDOUT);
    part();
}

static void descriptors(void)
{
    int pipes[2];
    meet(65536, 65536);
    CHECK(!pipe(pipes));
    CHECK(write(pipes[1], "straight through", 16) == 16);
    CHECK(libxenvchan_read_from_fd(client, pipes[0], 8) == 8);
    CHECK(libxenvchan_read_from_fd(client, pipes[0], 100) == 8);
    CHECK(libxenvchan_write_to_fd(server, pipes[1], 100) == 16);
    CHECK(read(pipes[0], got, 100) == 16 && !memcmp(got, "straight through", 16));
    FAILS(libxenvchan_write_to_fd(server, pipes[1], 100), -1, EAGAIN);
    FAILS(libxenvchan_read_from_fd(client, -1, 100), -1, EBADF);
    CHECK(!libxenvchan_read_from_fd(client, pipes[0], 0));
    CHECK(libxenvchan_write(client, bytes, 65536) == 65536);
    FAILS(libxenvchan_read_from_fd(client, pipes[0], 100), -1, EAGAIN);
    close(pipes[1]);
    CHECK(libxenvchan_read(server, got, 65536) == 65536);
    CHECK(!libxenvchan_read_from_fd(client, pipes[0], 100));
    close(pipes[0]);
    libxenvchan_close(client);
    CHECK(!libxenvchan_write_to_fd(server, 1, 100));
    libxenvchan_close(server);
}

static volatile sig_atomic_t alarmed;

static void on_alarm(int number)
{
    alarmed = number;
}

/* A signal ends every kind of sleep, as in Xen's library, if its handler does not restart calls. */
static void signals(void)
{
    struct sigaction action = { .sa_handler = on_alarm };
    sigaction(SIGALRM, &action, NULL);
    for (int i = 0; i < 3; i++) {
        meet(0, 0);
        server->blocking = 1;
        while (poll_for(server, 10) == 1)
            CHECK(!libxenvchan_wait(server));
        if (i == 2)
            CHECK(libxenvchan_write(server, bytes, 2048) == 2048);
        alarmed = 0;
        ualarm(50000, 0);
        if (i == 0)
            FAILS(libxenvchan_wait(server), -1, EINTR);
        else if (i == 1)
            FAILS(libxenvchan_read(server, got, 1), -1, EINTR);
        else
            FAILS(libxenvchan_write(server, bytes, 1), -1, EINTR);
        CHECK(alarmed);
        part();
    }
}

/*
 * Who blocks, reads a little of what has come, and then never calls again: the room comes back all the same, for libxenvchan's
 * callers may sleep elsewhere until their peer has got it.
 */
static void left_room_comes_back(void)
{
    meet(65536, 65536);
    server->blocking = 1;
    CHECK(libxenvchan_write(client, bytes, 65536) == 65536);
    CHECK(libxenvchan_read(server, got, 10) == 10);
    CHECK(!libxenvchan_buffer_space(client) || libxenvchan_buffer_space(client) == 10);
    if (!libxenvchan_buffer_space(client))
        CHECK(poll_for(client, 5000) == 1);
    for (int tries = 0; libxenvchan_buffer_space(client) != 10; tries++) {
        CHECK(tries < 5000);
        usleep(1000);
    }
    /* And the second time. */
    CHECK(libxenvchan_write(client, bytes, 10) == 10);
    CHECK(libxenvchan_read(server, got, 10) == 10);
    for (int tries = 0; libxenvchan_buffer_space(client) != 10; tries++) {
        CHECK(tries < 5000);
        usleep(1000);
    }
    part();
}

/* Who reads in blocking mode and asks for the descriptor only then is told of what came in between. */
static void a_late_descriptor(void)
{
    for (int before = 0; before < 2; before++) {
        meet(65536, 65536);
        server->blocking = 1;
        CHECK(!libxenvchan_wait(server));
        CHECK(libxenvchan_write(client, bytes, 10) == 10);
        CHECK(!libxenvchan_wait(server));
        CHECK(libxenvchan_read(server, got, 100) == 10);
        if (before)
            CHECK(libxenvchan_write(client, bytes, 10) == 10);
        CHECK(libxenvchan_fd_for_select(server) >= 0);
        if (!before) {
            CHECK(poll_for(server, 20) == 0);
            CHECK(libxenvchan_write(client, bytes, 10) == 10);
        }
        CHECK(poll_for(server, 5000) == 1);
        CHECK(!libxenvchan_wait(server));
        CHECK(libxenvchan_read(server, got, 100) == 10);
        part();
    }
}

/* A caller that blocks and waits by itself. */
static void waits_in_blocking_mode(void)
{
    meet(65536, 65536);
    server->blocking = 1;
    CHECK(!libxenvchan_wait(server));
    for (int i = 0; i < 3; i++) {
        CHECK(libxenvchan_write(client, bytes, 10) == 10);
        CHECK(libxenvchan_read(server, got, 100) == 10);
        /* Written since the short read: there was, or is, an event. */
        CHECK(libxenvchan_write(client, bytes, 10) == 10);
        CHECK(!libxenvchan_wait_timeout(server, 20000));
        CHECK(libxenvchan_data_ready(server) == 10);
        CHECK(libxenvchan_read(server, got, 100) == 10);
    }
    part();
}

static void *echo(void *nothing)
{
    for (int i = 0; i < 200; i++) {
        CHECK(libxenvchan_recv(client, got, 1000) == 1000);
        CHECK(libxenvchan_write(client, got, 1000) == 1000);
    }
    return nothing;
}

static void *pour(void *nothing)
{
    for (int i = 0; i < 200; i++)
        CHECK(libxenvchan_write(server, bytes + i, 1000) == 1000);
    return nothing;
}

/* One thread reads while another one writes. */
static void two_threads(void)
{
    static char back[1000];
    pthread_t echoes, pours;
    meet(0, 0);
    server->blocking = client->blocking = 1;
    CHECK(!pthread_create(&echoes, NULL, echo, NULL));
    CHECK(!pthread_create(&pours, NULL, pour, NULL));
    for (int i = 0; i < 200; i++) {
        CHECK(libxenvchan_recv(server, back, 1000) == 1000);
        CHECK(!memcmp(back, bytes + i, 1000));
    }
    pthread_join(pours, NULL);
    pthread_join(echoes, NULL);
    part();
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = i * 7 + (i >> 8);
    alarm(60);
    CHECK(!libxenvchan_last_error(NULL));
    no_handle();
    no_channel();
    errors();
    violation();
    timeouts();
    descriptors();
    left_room_comes_back();
    a_late_descriptor();
    waits_in_blocking_mode();
    two_threads();
    alarm(0);
    signals();
    puts("ok");
    return 0;
}
