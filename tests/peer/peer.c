/*
 * One end of a conversation over libxenvchan that checks every byte. The other end is this program, or the example
 * vchan-peer of the crate vchan, which says and understands the same. Build: gcc peer.c -o peer -lxenvchan
 *
 *   peer ROLE DOMID PATH LEFT_MIN RIGHT_MIN BYTES SEED [--progress]
 *
 *   server  receives BYTES, sends BYTES (of SEED + 1), receives the client's word, gives its own, sees the end
 *   client  the other side of that
 *   drain   a server that receives until the end, which must come after BYTES. libxenvchan may lose bytes there, when
 *           the client leaves at once: it looks for data, then for the end, and not for data again.
 *   burst   a client that sends BYTES and leaves at once
 *
 * The bytes of a seed are those of SplitMix64's numbers, each as 8 bytes, the lowest first. The parts that are sent
 * have lengths of every size up to 64 KiB. A client ignores the minimums, and waits for its server. PATH of a client is
 * absolute, and both must be short: libxenvchan cuts what is longer than 63 bytes with the key's name.
 *
 * Prints one line, "ok sent=N received=N left_order=A right_order=B", and exits with 0 only if every byte was as it had
 * to be; otherwise the line says what was not. With --progress it says on standard error when a server is "listening",
 * and when it is "connected".
 */
#include <inttypes.h>
#include <libxenvchan.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATIENCE = 60 /* seconds */, PART = 50000, LONGEST = 1 << 16 };
enum { ACKNOWLEDGE = 0x06, FAREWELL = 0x04 };

static struct libxenvchan *vchan;

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    if (vchan)
        libxenvchan_close(vchan);
    exit(1);
}

static int progress;

static void say(const char *what)
{
    if (progress)
        fprintf(stderr, "%s\n", what);
}

static uint64_t next_number(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* The bytes of a seed, from the first on. */
struct bytes {
    uint64_t state, number;
    unsigned left;
};

static unsigned char next_byte(struct bytes *bytes)
{
    if (!bytes->left) {
        bytes->number = next_number(&bytes->state);
        bytes->left = 8;
    }
    unsigned char byte = bytes->number;
    bytes->number >>= 8;
    bytes->left--;
    return byte;
}

static size_t next_length(uint64_t *state)
{
    unsigned power = next_number(state) % 17;
    return 1 + next_number(state) % ((uint64_t)1 << power);
}

static void write_all(const void *data, size_t size)
{
    if (libxenvchan_write(vchan, data, size) != (int)size)
        fail("libxenvchan_write of %zu bytes failed", size);
}

static void send_bytes(size_t count, uint64_t seed)
{
    static unsigned char part[LONGEST];
    struct bytes source = { .state = seed };
    uint64_t lengths = ~seed;
    while (count) {
        size_t length = next_length(&lengths);
        if (length > count)
            length = count;
        for (size_t i = 0; i < length; i++)
            part[i] = next_byte(&source);
        write_all(part, length);
        count -= length;
    }
}

static void receive_bytes(size_t count, uint64_t seed)
{
    static unsigned char part[PART];
    struct bytes expected = { .state = seed };
    size_t done = 0;
    while (done < count) {
        size_t wanted = count - done < PART ? count - done : PART;
        int got = libxenvchan_read(vchan, part, wanted);
        if (got <= 0)
            fail("libxenvchan_read returned %d after %zu of %zu bytes", got, done, count);
        for (int i = 0; i < got; i++, done++) {
            unsigned char byte = next_byte(&expected);
            if (part[i] != byte)
                fail("byte %zu is 0x%02x, not 0x%02x", done, part[i], byte);
        }
    }
}

static void send_word(unsigned char word)
{
    write_all(&word, 1);
}

static void receive_word(unsigned char word)
{
    unsigned char got;
    if (libxenvchan_recv(vchan, &got, 1) != 1)
        fail("the word 0x%02x did not come", word);
    if (got != word)
        fail("the word is 0x%02x, not 0x%02x", got, word);
}

static void see_end(void)
{
    unsigned char more[100];
    int got = libxenvchan_read(vchan, more, sizeof more);
    if (got > 0)
        fail("%d bytes more than there should be", got);
    if (libxenvchan_is_open(vchan))
        fail("libxenvchan_read returned %d on an open channel", got);
}

static void serve(int domid, const char *path, size_t left_min, size_t right_min)
{
    vchan = libxenvchan_server_init(NULL, domid, path, left_min, right_min);
    if (!vchan)
        fail("libxenvchan_server_init failed");
    vchan->blocking = 1;
    say("listening");
    while (libxenvchan_is_open(vchan) == 2)
        if (libxenvchan_wait(vchan))
            fail("libxenvchan_wait failed");
    say("connected");
}

static void connect_to(int domid, const char *path)
{
    for (int tries = 0; !vchan; tries++) {
        if (tries == PATIENCE * 100)
            fail("no server at %s", path);
        if (tries)
            usleep(10000);
        vchan = libxenvchan_client_init(NULL, domid, path);
    }
    vchan->blocking = 1;
    say("connected");
}

int main(int argc, char **argv)
{
    progress = argc == 9 && !strcmp(argv[8], "--progress");
    if (argc != 8 + progress)
        fail("usage: peer server|client|drain|burst DOMID PATH LEFT_MIN RIGHT_MIN BYTES SEED [--progress]");
    const char *role = argv[1];
    int domid = atoi(argv[2]);
    size_t left_min = strtoull(argv[4], NULL, 10), right_min = strtoull(argv[5], NULL, 10);
    size_t bytes = strtoull(argv[6], NULL, 10), sent = bytes, received = bytes;
    uint64_t seed = strtoull(argv[7], NULL, 10);
    /* A peer that hangs is a failure, not a wait. */
    alarm(PATIENCE * 2);

    if (!strcmp(role, "server")) {
        serve(domid, argv[3], left_min, right_min);
        receive_bytes(bytes, seed);
        send_bytes(bytes, seed + 1);
        receive_word(ACKNOWLEDGE);
        send_word(FAREWELL);
        see_end();
    } else if (!strcmp(role, "client")) {
        connect_to(domid, argv[3]);
        send_bytes(bytes, seed);
        receive_bytes(bytes, seed + 1);
        send_word(ACKNOWLEDGE);
        receive_word(FAREWELL);
    } else if (!strcmp(role, "drain")) {
        serve(domid, argv[3], left_min, right_min);
        sent = 0;
        receive_bytes(bytes, seed);
        see_end();
    } else if (!strcmp(role, "burst")) {
        connect_to(domid, argv[3]);
        received = 0;
        send_bytes(bytes, seed);
    } else {
        fail("%s is no role", role);
    }
    int left = vchan->is_server ? vchan->read.order : vchan->write.order;
    int right = vchan->is_server ? vchan->write.order : vchan->read.order;
    libxenvchan_close(vchan);
    printf("ok sent=%zu received=%zu left_order=%d right_order=%d\n", sent, received, left, right);
    return 0;
}
