# Serves jobs until it is told to go.
#
# A job is a shell command that dom0 writes to data/job as "NUMBER COMMAND". The guest clears the
# node, runs the command with its output on the console between two marker lines, and writes the end
# of that output to data/job-output and "NUMBER STATUS" to data/job-status. So one boot serves many
# checks, with nothing but xenstore.
serve() {
    number=${1%% *}
    echo "@job $number begin"
    sh -c "${1#* }" < /dev/null > /run/job-output 2>&1
    status=$?
    cat /run/job-output
    echo "@job $number end $status"
    # A message of xenstore holds 4 KiB. -R: as it is, without reading escapes into it; it may begin with a hyphen.
    xenstore-write -R -- data/job-output "$(tail -c 2000 /run/job-output)"
    xenstore-write data/job-status "$number $status"
}

xenstore-write data/ready 1

# The watch fires once when it is set, and then for every write.
xenstore-watch data/job | while read -r path; do
    job=$(xenstore-read -R data/job 2>/dev/null)
    test -n "$job" || continue
    xenstore-write data/job ""
    serve "$job"
done
