/*
 * One end of a channel whose both ends sleep in poll alone, on the descriptor, and are to be woken whenever there is something
 * to do. Both send BYTES at the same time, and check what they receive. Build: gcc poller.c -lxenvchan
 *
 *   poller server|client asks|short BYTES SEED
 *
 *   asks   blocks, but asks how much there is before it reads or writes: as Qubes' daemons do
 *   short  does not block, and goes to sleep when it got, or could put in, less than it wanted
 */
#include "check.h"
#include <libxenvchan.h>
#include <poll.h>

enum { LONGEST = 3000, PATIENCE = 20000 /* ms */ };

static struct libxenvchan *vchan;
static unsigned seed;
static int is_server;

static size_t some(void)
{
    return 1 + rand_r(&seed) % LONGEST;
}

static char byte_at(int from_server, size_t at)
{
    return (at * 0x9e3779b97f4a7c15u + from_server) >> 40;
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static size_t received, sent, all;

static void check(const char *got, int count)
{
    CHECK(count >= 0 && received + count <= all);
    for (int i = 0; i < count; i++, received++)
        CHECK(got[i] == byte_at(!is_server, received));
}

static int put(size_t wanted)
{
    char part[LONGEST];
    for (size_t i = 0; i < wanted; i++)
        part[i] = byte_at(is_server, sent + i);
    int n = libxenvchan_write(vchan, part, wanted);
    CHECK(n >= 0);
    sent += n;
    return n;
}

static void asks(void)
{
    char part[LONGEST];
    while (received < all && libxenvchan_data_ready(vchan) > 0)
        check(part, libxenvchan_read(vchan, part, least(some(), all - received)));
    while (sent < all) {
        size_t wanted = least(some(), all - sent);
        if (libxenvchan_buffer_space(vchan) < (int)wanted)
            break;
        CHECK(put(wanted) == (int)wanted);
    }
}

static void takes_less(void)
{
    char part[LONGEST];
    while (received < all) {
        size_t wanted = least(some(), all - received);
        int n = libxenvchan_read(vchan, part, wanted);
        check(part, n);
        if (n < (int)wanted)
            break;
    }
    while (sent < all) {
        size_t wanted = least(some(), all - sent);
        if (put(wanted) < (int)wanted)
            break;
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    is_server = !strcmp(argv[1], "server");
    int asking = !strcmp(argv[2], "asks");
    all = strtoull(argv[3], NULL, 10);
    seed = strtoull(argv[4], NULL, 10) + is_server;
    if (is_server)
        CHECK(vchan = libxenvchan_server_init(NULL, 2, "data/vchan/2/7", 4096, 4096));
    for (int tries = 0; !vchan; tries++) {
        vchan = libxenvchan_client_init(NULL, 1, "/local/domain/1/data/vchan/2/7");
        if (!vchan) {
            CHECK(tries < PATIENCE / 10);
            poll(NULL, 0, 10);
        }
    }
    vchan->blocking = asking;
    struct pollfd event = { .fd = libxenvchan_fd_for_select(vchan), .events = POLLIN };
    for (;;) {
        if (asking)
            asks();
        else
            takes_less();
        if (received == all && sent == all)
            break;
        if (poll(&event, 1, PATIENCE) != 1) {
            printf("not woken: %zu received, %zu sent of %zu\n", received, sent, all);
            return 1;
        }
        CHECK(!libxenvchan_wait(vchan));
    }
    /* A last word each, so that nobody leaves before the other has it all. */
    vchan->blocking = 1;
    char word = 0;
    CHECK(libxenvchan_write(vchan, "!", 1) == 1);
    CHECK(libxenvchan_recv(vchan, &word, 1) == 1 && word == '!');
    if (is_server)
        CHECK(libxenvchan_recv(vchan, &word, 1) == -1);
    libxenvchan_close(vchan);
    puts("ok");
    return 0;
}
