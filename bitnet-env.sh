# shellcheck shell=sh disable=SC2086 # lists of words are split on purpose, and -f is set
# bitnet-env.sh: gives a shell the threads for bitnet.cpp that the launchers compute.
#
#   . /path/to/bitnet-env.sh          in ~/.bashrc, ~/.zshrc or by hand; prints nothing
#   . /path/to/bitnet-env.sh off      takes back what it set. dash hands no word to a sourced
#                                     file; what works everywhere:
#   BITNET_ENV=off; . /path/to/bitnet-env.sh
#
# BITNET_THREADS=N outranks what is computed; BITNET_ENV_VERBOSE=1 prints a line to stderr.
#
# It exports three groups: the counts OMP_NUM_THREADS, MKL_NUM_THREADS, OPENBLAS_NUM_THREADS;
# the binding OMP_PROC_BIND=true, OMP_PLACES=cores; and, where no CPU quota binds, how LLVM's
# threads wait, KMP_BLOCKTIME=200. What the user has set stays: places of their own keep the
# binding out, a way to wait of their own KMP_BLOCKTIME, an OMP_NUM_THREADS of their own all
# counts (MKL and OpenBLAS take it from there).
#
# It leaves no mark but these variables: where two groups hold what is written here, they are
# this file's. Sourced again it computes them anew, "off" unsets them, and launchers do not
# take them for the user's wish (exported() in bitnet_tuning/openmp.py). Nothing is exported
# where that could not be told later: where the user leaves a single group to it, or has set a
# whole group to values such as these.
#
# Why it computes instead of reading what a Python command wrote: the container, batch job or
# taskset that sources it has other limits than the shell that wrote. The rules are those of
# bitnet_tuning/host and bitnet_tuning/threads.py; tests/test_env_script.py compares both on
# dumps of real machines and on made-up ones.
#
# All happens in a subshell, so that no variable or option stays; the one function that this
# shell sees for a moment holds the others. Only built-ins run, but for grep where the table of
# mounts is long. Comments name the variables that a function answers in.

# Writes to 9 what this shell is to evaluate. $1: the first word it was given, and how many.
bitnet_env_commands() {
  [ -z "${ZSH_VERSION-}" ] || emulate -R sh
  # shellcheck disable=SC3044
  [ -z "${BASH_VERSION-}" ] || shopt -u failglob nocasematch
  set +e +u -f
  unset IFS
  LC_ALL=C # patterns match bytes, which is fast
  root=${BITNET_ENV_ROOT-} # for tests
  folder=sys/devices/system/cpu

  # value: the text of a file of one line, or nothing. Only zsh keeps the NUL that old kernels
  # end some files with.
  bitnet_read() {
    value=
    read -r ${ZSH_VERSION:+-d ""} value <"$root/$1"
  }

  # number: $1, a whole number above 0, at most 15 digits of it; fails for anything else.
  bitnet_number() {
    number=$1
    case $number in ('' | *[!0-9]*) return 1 ;; esac
    while [ "${number#0}" != "$number" ]; do number=${number#0}; done
    [ ${#number} -le 15 ] || number=999999999999999
    [ -n "$number" ]
  }

  # --- Sets of CPUs: ids with a space before each

  # list: the CPUs of a list such as 0-3,8 up to $last; fails for anything else.
  bitnet_list() {
    list=
    case $1 in (*[!0-9,-]*) return 1 ;; esac
    IFS=,
    set -- $1
    unset IFS
    for part; do
      [ -n "$part" ] || continue
      id=${part%-*} high=${part#*-}
      case $id/$high in (*-* | /* | */ | 0[0-9]* | */0[0-9]* | */??????*) return 1 ;; esac
      [ "$id" -le "$high" ] && [ "$high" -lt 65536 ] || return 1
      [ "$high" -le "$last" ] || high=$last
      while [ "$id" -le "$high" ]; do
        list="$list $id" id=$((id + 1))
      done
    done
  }

  # list: the CPUs of a mask such as 00000000,00001c07: words of 32 bits, highest first.
  bitnet_mask() {
    list='' words=$1 base=0
    case $words in ('' | *[!0-9a-fA-F,]* | ,* | *, | *,,*) return 1 ;; esac
    while [ -n "$words" ]; do
      bits=${words##*,} id=$base
      [ ${#bits} -le 15 ] || return
      bits=$((0x$bits))
      while [ "$bits" -gt 0 ]; do
        [ $((bits & 1)) -eq 0 ] || list="$list $id"
        bits=$((bits >> 1)) id=$((id + 1))
      done
      base=$((base + 32))
      case $words in (*,*) words=${words%,*} ;; (*) words= ;; esac
    done
  }

  # list: the CPUs of the first of these files that names any; fails where none does.
  bitnet_set() {
    for file; do
      bitnet_read "$file"
      case $file in
        (*_siblings | *_cpus) bitnet_mask "$value" || continue ;;
        (*) bitnet_list "$value" || continue ;;
      esac
      [ -z "$list" ] || return 0
    done
    list=
    return 1
  }

  # list: those of the CPUs $1 that are among the CPUs $2.
  bitnet_both() {
    list=
    for id in $1; do
      case "$2 " in (*" $id "*) list="$list $id" ;; esac
    done
  }

  # --- Topology

  # online: ascending; last: the highest of them.
  bitnet_online() {
    last=65535
    bitnet_set $folder/online || bitnet_folders || bitnet_processors || list=' 0'
    online=$list last=${list##* }
  }

  # list: the CPUs that have a folder and are not switched off. Old kernels drop the topology
  # folder of a CPU that is, and say it nowhere else.
  bitnet_folders() {
    list='' described='' id=0 left=0
    set +f
    for file in "$root/$folder"/cpu[0-9]*; do
      case ${file##*/cpu} in (*[!0-9]*) ;; (*) left=$((left + 1)) ;; esac
    done
    set -f
    while [ $left -gt 0 ] && [ $id -le $last ]; do
      if [ -e "$root/$folder/cpu$id" ]; then
        left=$((left - 1))
        bitnet_read "$folder/cpu$id/online"
        if [ "$value" != 0 ]; then
          list="$list $id"
          [ ! -e "$root/$folder/cpu$id/topology" ] || described="$described $id"
        fi
      fi
      id=$((id + 1))
    done
    list=${described:-$list}
    [ -n "$list" ]
  }

  # list: the processors in cpuinfo, where s390 writes: processor 3: version = ...
  bitnet_processors() {
    list=
    [ -r "$root/proc/cpuinfo" ] || return
    while read -r key value rest; do
      case $key in (processor | processor:) ;; (*) continue ;; esac
      [ "$value" != : ] || value=$rest
      value=${value%%:*}
      case $value in ('' | *[!0-9]* | ??????*) continue ;; esac
      case "$list " in (*" $value "*) ;; (*) list="$list $value" ;; esac
    done <"$root/proc/cpuinfo"
    [ -n "$list" ]
  }

  # cores: the CPUs online of each, as 0,4. Only sets of siblings tell cores apart: core ids
  # repeat.
  bitnet_cores() {
    cores='' later=
    for cpu in $online; do
      case "$later " in (*" $cpu "*) continue ;; esac
      core=$cpu here=$folder/cpu$cpu/topology
      bitnet_read $here/thread_siblings_list
      if [ "$value" != "$cpu" ]; then
        bitnet_set $here/thread_siblings_list $here/core_cpus_list \
          $here/thread_siblings $here/core_cpus
        bitnet_both "$list" "$online"
        for id in $list; do
          case "$later " in (*" $id "*) continue ;; esac
          [ "$id" -le "$cpu" ] || core=$core,$id later="$later $id"
        done
      fi
      cores="$cores $core"
    done
  }

  # allowed: the CPUs online in the affinity mask of this process.
  bitnet_allowed() {
    listed=' ' mask=
    if [ -r "$root/proc/self/status" ]; then
      while read -r key value rest; do
        case $key in
          (Cpus_allowed:) mask=$value ;;
          (Cpus_allowed_list:) listed=$value && break ;;
        esac
      done <"$root/proc/self/status"
    fi
    bitnet_list "$listed" || bitnet_mask "$mask" || list=
    [ "$list" = "$online" ] || bitnet_both "$list" "$online"
    allowed=${list:-$online}
  }

  # --- Kinds of cores

  # speeds: of each core, 0 for the fast kind, which is as fast as $top; nothing where all
  # are of one kind.
  bitnet_kinds() {
    speeds='' below=0 slow='' share=2
    if bitnet_efficient; then
      bitnet_figures cpufreq/cpuinfo_max_freq || bitnet_typical
      share=1
    elif ! { bitnet_figures cpu_capacity && bitnet_gap; }; then
      bitnet_figures cpufreq/cpuinfo_max_freq && bitnet_gap || return
      ! bitnet_is_intel || share=1
    fi
    bitnet_rate
  }

  # slow: the CPUs online that the kernel lists as efficient on Intel; fails without any.
  bitnet_efficient() {
    bitnet_set sys/devices/cpu_core/cpus || return
    bitnet_both "$list" "$online"
    fast=$list
    [ -n "$fast" ] || return
    bitnet_set sys/devices/cpu_atom/cpus
    atoms=$list
    bitnet_set sys/devices/cpu_lowpower/cpus
    bitnet_both "$atoms$list" "$online"
    for id in $list; do
      case "$fast " in (*" $id "*) ;; (*) slow="$slow $id" ;; esac
    done
    [ -n "$slow" ]
  }

  # figures: of each core the largest value of a file; fails where a core has none, which
  # must not pass for a slow one.
  bitnet_figures() {
    figures=
    for core in $cores; do
      largest=0
      IFS=,
      for cpu in $core; do
        unset IFS
        bitnet_read "$folder/cpu$cpu/$1"
        bitnet_number "$value" && [ "$number" -gt "$largest" ] && largest=$number
      done
      [ "$largest" -gt 0 ] || return
      figures="$figures $largest"
    done
  }

  # figures: with a share of 1, 0.4 for slow cores (INTEL_EFFICIENCY_SPEED).
  bitnet_typical() {
    figures=
    for core in $cores; do
      bitnet_any "$core" "$slow" && figures="$figures 4" || figures="$figures 5"
    done
  }

  # Whether any of the CPUs in 0,4 is among the CPUs $2.
  bitnet_any() {
    IFS=,
    for id in $1; do
      unset IFS
      case "$2 " in (*" $id "*) return 0 ;; esac
    done
    return 1
  }

  # below: the largest figure under the first gap of 1.2 (APART) from the top; fails where
  # there is none.
  bitnet_gap() {
    above=0 below=0
    for figure in $figures; do
      [ "$figure" -le "$below" ] || below=$figure
    done
    while [ "$below" -gt 0 ]; do
      [ $((5 * above)) -lt $((6 * below)) ] || return 0
      above=$below below=0
      for figure in $figures; do
        [ "$figure" -ge "$above" ] || [ "$figure" -le "$below" ] || below=$figure
      done
    done
    return 1
  }

  bitnet_is_intel() {
    while read -r key value && [ -n "$key" ]; do
      case $key:$value in (vendor_id:": "*) break ;; esac
    done <"$root/proc/cpuinfo"
    [ "$value" = ': GenuineIntel' ]
  }

  # speeds and top, from figures. A slow core counts half (INTEL_EFFICIENCY_SHARE) where
  # share is 1.
  bitnet_rate() {
    top=0
    set -- $figures
    for core in $cores; do
      speed=0 double=$((2 * $1))
      if [ "$1" -le "$below" ] || bitnet_any "$core" "$slow"; then
        double=$((share * $1)) speed=$((share * $1))
      fi
      [ "$double" -le "$top" ] || top=$double
      speeds="$speeds $speed"
      shift
    done
  }

  # --- Quotas: limit is the tightest, in whole CPUs

  bitnet_quota() {
    case $2 in (0 | -[0-9]*) return ;; esac
    bitnet_number "$1" || return
    quota=$number
    bitnet_number "$2" || number=100000
    quota=$((quota / number))
    [ "$quota" -ge "$limit" ] || limit=$quota
  }

  # Looks at the group $2 below the mount $1, and at every level above it.
  bitnet_levels() {
    level=$2
    while :; do
      if [ "$3" = 2 ]; then
        value='' period=
        read -r value period rest <"$root/$1$level/cpu.max"
      else
        bitnet_read "$1$level/cpu.cfs_period_us"
        period=$value
        bitnet_read "$1$level/cpu.cfs_quota_us"
      fi
      bitnet_quota "$value" "$period"
      [ -n "$level" ] || break
      level=${level%/*}
    done
  }

  # group1, group2: where this process is in the hierarchy of version 1 that has the cpu
  # controller, and in version 2.
  bitnet_groups() {
    group1=/ group2=/
    [ -r "$root/proc/self/cgroup" ] || return
    while IFS=: read -r id controllers group; do
      case ,$controllers, in
        (,,) group2=$group ;;
        (*,cpu,*) group1=$group ;;
      esac
    done <"$root/proc/self/cgroup"
  }

  # A mount of version $1 at $2, of which $3 is the origin. Where no mount shows the group,
  # the first one is the only place that may be ours: spare1, spare2.
  bitnet_mount() {
    mounted=1 group=$group1
    [ "$1" = 1 ] || group=$group2
    bitnet_unescape "${3%/}"
    origin=$text
    bitnet_unescape "$2"
    case /$group/ in
      (*/../*) ;;
      ("/$origin"/*)
        group=${group#"$origin"}
        bitnet_levels "$text" "${group%/}" "$1"
        text=shown
        ;;
    esac
    bitnet_spare "$1"
  }

  # Keeps $text as the spare place of version $1, unless there is one.
  bitnet_spare() {
    case $1:$text in
      (1:shown) spare1=shown ;;
      (2:shown) spare2=shown ;;
      (1:*) spare1=${spare1:-$text} ;;
      (2:*) spare2=${spare2:-$text} ;;
    esac
  }

  # text: $1, in which the kernel writes a space as \040.
  bitnet_unescape() {
    text=$1
    case $text in (*\\*) text=$(printf '%b/' "$text") && text=${text%/} ;; esac
  }

  # One line of a table of mounts. Only mountinfo tells the origin.
  bitnet_line() {
    case $1:$2 in
      (*mountinfo:*" - cgroup"*)
        kind=${2#*" - "}
        set -- ${2%%" - "*}
        [ $# -ge 5 ] || return
        origin=$4 point=$5
        set -- $kind
        [ $# -ge 3 ] && bitnet_kind "$1" "$3" "$point" "$origin"
        ;;
      (*mounts:*)
        set -- $2
        [ $# -ge 4 ] && bitnet_kind "$3" "$4" "$2" /
        ;;
    esac
  }

  bitnet_kind() {
    case $1:,$2, in
      (cgroup2:*) bitnet_mount 2 "$3" "$4" ;;
      (cgroup:*,cpu,*) bitnet_mount 1 "$3" "$4" ;;
      (cgroup:*) mounted=1 ;;
    esac
  }

  # Goes through a table of mounts; fails where it names no control groups. Shells read byte
  # by byte, so the rest of a long one is left to grep.
  bitnet_table() {
    mounted='' lines=0
    [ -r "$root/$1" ] || return
    {
      while [ $lines -lt 40 ] && read -r line; do
        bitnet_line "$1" "$line"
        lines=$((lines + 1))
      done
      [ $lines -lt 40 ] || bitnet_rest "$1"
    } <"$root/$1"
    [ -n "$mounted" ]
  }

  bitnet_rest() {
    rest=$(\grep cgroup)
    IFS='
'
    for line in $rest; do
      unset IFS
      bitnet_line "$1" "$line"
    done
    unset IFS
  }

  # Where distributions mount them, for a root without a mount table.
  bitnet_customary() {
    bitnet_mount 2 sys/fs/cgroup /
    bitnet_mount 2 sys/fs/cgroup/unified /
    set +f
    for file in "$root"/sys/fs/cgroup/*cpu*; do
      case ,${file##*/}, in (*,cpu,*) bitnet_mount 1 "${file#"$root/"}" / ;; esac
    done
    set -f
  }

  bitnet_limit() {
    limit=1000000 spare1='' spare2=
    bitnet_groups
    bitnet_table proc/self/mountinfo || bitnet_table proc/self/mounts ||
      bitnet_table proc/mounts || bitnet_customary
    case $spare1 in ('' | shown) ;; (*) bitnet_levels "$spare1" '' 1 ;; esac
    case $spare2 in ('' | shown) ;; (*) bitnet_levels "$spare2" '' 2 ;; esac
  }

  # --- The decision

  # macOS has no files to read, only a program to ask. It numbers performance cores first.
  bitnet_macos() {
    physical=0 fast=0 slow=0 id=0 cores='' speeds='' allowed='' online='' limit=1000000 top=20
    list=$("$root/usr/sbin/sysctl" hw.physicalcpu hw.perflevel0.physicalcpu \
      hw.perflevel1.physicalcpu)
    set -- $list
    while [ $# -ge 2 ]; do
      bitnet_number "$2" && case $1 in
        (hw.physicalcpu:) physical=$number ;;
        (hw.perflevel0.*) fast=$number ;;
        (hw.perflevel1.*) slow=$number ;;
      esac
      shift
    done
    while [ $id -lt "$physical" ]; do
      cores="$cores $id" id=$((id + 1))
      [ "$id" -le "$fast" ] && speeds="$speeds 0" || speeds="$speeds 7" # APPLE_EFFICIENCY_SPEED
    done
    [ "$fast" -gt 0 ] && [ "$slow" -gt 0 ] && [ "$fast" -lt "$physical" ] || speeds=
  }

  # threads, and binds where the quota leaves less than the cores.
  bitnet_threads() {
    usable=0 candidates=' ' binds=
    set -- $speeds
    for core in $cores; do
      if [ "$allowed" = "$online" ] || bitnet_any "$core" "$allowed"; then
        usable=$((usable + 1)) speed=${1-}
        [ "$speed" != 0 ] || speed=$top
        candidates="$candidates$speed "
      fi
      [ $# -eq 0 ] || shift
    done
    [ "$limit" -ge $usable ] || binds=1 usable=$limit
    [ "$usable" -ge 1 ] || usable=1
    [ "$usable" -le 12 ] || usable=12 # MOST_THREADS
    threads=$usable
    [ -z "$speeds" ] || bitnet_best
    set -- ${BITNET_THREADS-}
    [ $# -eq 1 ] && bitnet_number "$1" && [ "$number" -le 512 ] && threads=$number
  }

  # threads: every thread gets the same share of a step and waits for the last, so k cores
  # do as much as k of the slowest among them. Slower ones must bring a gain of 1.1
  # (WORTHWHILE).
  bitnet_best() {
    count=0 threads=1 slowest=
    while [ $count -lt "$usable" ]; do
      count=$((count + 1)) speed=0 factor=10
      for other in $candidates; do
        [ "$other" -le $speed ] || speed=$other
      done
      candidates="${candidates%%" $speed "*} ${candidates#*" $speed "}"
      [ $speed -ge "${slowest:=$speed}" ] || factor=11
      [ $((10 * count * speed)) -lt $((factor * threads * slowest)) ] ||
        threads=$count slowest=$speed
    done
  }

  # --- Variables

  # ours: what an earlier call exported; unset in this subshell, so that the rest of it sees
  # only what is the user's own. alike: the group of these that could pass for ours.
  bitnet_ours() {
    counts='' binding='' waiting='' alike=
    if [ -n "${OMP_NUM_THREADS:+${MKL_NUM_THREADS:+${OPENBLAS_NUM_THREADS-}}}" ]; then
      [ "$MKL_NUM_THREADS" != "$OMP_NUM_THREADS" ] || counts=' MKL_NUM_THREADS'
      [ "$OPENBLAS_NUM_THREADS" != "$OMP_NUM_THREADS" ] || counts="$counts OPENBLAS_NUM_THREADS"
      counts=${counts:+" OMP_NUM_THREADS$counts"}
    fi
    [ "${OMP_PROC_BIND-},${OMP_PLACES-}" != true,cores ] || binding=' OMP_PROC_BIND OMP_PLACES'
    [ "${KMP_BLOCKTIME-}" != 200 ] || waiting=' KMP_BLOCKTIME'
    ours=$counts$binding$waiting
    bitnet_two || alike=$ours ours=
    [ -z "$ours" ] || unset $ours
  }

  # Whether there are two groups at least.
  bitnet_two() {
    case ${counts:+x}${binding:+x}${waiting:+x} in (xx*) ;; (*) return 1 ;; esac
  }

  # exports: assignments of all that the user leaves to us.
  bitnet_exports() {
    counts='' binding='' waiting='' exports=
    bitnet_counts
    [ -n "${OMP_PROC_BIND-}${OMP_PLACES-}${GOMP_CPU_AFFINITY-}" ] ||
      [ -n "${KMP_AFFINITY-}${KMP_HW_SUBSET-}" ] ||
      binding=' OMP_PROC_BIND=true OMP_PLACES=cores'
    [ -n "${KMP_BLOCKTIME-}${OMP_WAIT_POLICY-}${KMP_LIBRARY-}$binds" ] ||
      waiting=' KMP_BLOCKTIME=200'
    [ -n "$alike" ] || ! bitnet_two || exports=$counts$binding$waiting
  }

  # counts: at least OMP_NUM_THREADS and another. Where one that the user set happens to be
  # the same, nobody could tell later whose it is.
  bitnet_counts() {
    case ${OMP_NUM_THREADS:+x}:${MKL_NUM_THREADS:+x}${OPENBLAS_NUM_THREADS:+x} in
      (: | :x) ;;
      (*) return ;;
    esac
    for name in OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS; do
      eval "value=\${$name-}"
      case $value in
        ('') counts="$counts $name=$threads" ;;
        ("$threads") counts='' && return ;;
      esac
    done
  }

  # kept: what the user set of all that is looked at.
  bitnet_kept() {
    kept=
    for name in OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS OMP_PROC_BIND OMP_PLACES \
      GOMP_CPU_AFFINITY KMP_AFFINITY KMP_HW_SUBSET KMP_BLOCKTIME OMP_WAIT_POLICY KMP_LIBRARY; do
      eval "value=\${$name-}"
      [ -z "$value" ] || kept="$kept $name"
    done
  }

  bitnet_on() {
    if [ -d "$root/System/Library" ]; then
      bitnet_macos
    else
      bitnet_online
      bitnet_cores
      bitnet_allowed
      bitnet_kinds
      bitnet_limit
    fi
    bitnet_threads
    bitnet_exports
    code="$code${exports:+ \\export$exports;}"
    bitnet_kept
    said="exported${exports:- nothing}${kept:+; as you set them:$kept}"
  }

  bitnet_ours
  code=${ours:+"\\unset$ours;"}
  said="took back${ours:- nothing: nothing is set as here}"
  case $1:${BITNET_ENV-} in
    (off:1:*) ;;
    (*:off) code="$code \\unset BITNET_ENV;" ;;
    (*) bitnet_on ;;
  esac
  [ "${BITNET_ENV_VERBOSE-}" != 1 ] ||
    code="$code \\printf '%s\\n' 'bitnet-env.sh: $said' >&2"
  printf '%s\n' "$code" >&9
}

# Only what is written to 9 is evaluated, not what a trap of the user may print in there.
\eval "$({ bitnet_env_commands "${1-}:$#"; } 9>&1 >/dev/null 2>&1)" || \:
\unset -f bitnet_env_commands
