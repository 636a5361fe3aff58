/**
 * What a fresh clone lacks, brought along: npm packages, and Debian packages when that is allowed.
 *
 * Runs under any Node from 20 and needs nothing installed. System packages are installed only by root, only with
 * apt-get, and not when NOID_NO_INSTALL is set; otherwise they are listed with the command that installs them.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))
/** The Node that noid brings along and runs under. */
export const node = join(root, 'node_modules', 'node', 'bin', 'node')

const say = (text) => process.stdout.write(`${text}\n`)

/** Install node_modules when a dependency is missing. */
export function ensureModules() {
  if (modulesComplete()) return
  say('installing npm packages ...')
  // Not `npm ci`: it insists on every optional package of every platform in the lock file and fails on registries
  // that mirror only some of them. `npm install` follows the same lock file and leaves those out.
  const r = spawnSync('npm', ['install', '--no-save', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: root,
    stdio: 'inherit',
  })
  if (r.error) fail(`npm could not be started (${r.error.code}); install npm and try again`)
  if (r.status !== 0) fail('npm install failed; the lines above say why')
  if (!modulesComplete()) {
    fail('npm install left out a package; if install scripts are switched off, run: npm install --ignore-scripts=false')
  }
}

function modulesComplete() {
  if (!existsSync(node)) return false
  const pkg = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const names = [...Object.keys(pkg.dependencies ?? {}), ...Object.keys(pkg.devDependencies ?? {})]
  return names.every((n) => existsSync(join(root, 'node_modules', n, 'package.json')))
}

/** No set of packages takes longer. */
const APT_MS = 15 * 60_000

/** A program and the Debian packages that have it, the preferred one first. */
const FOR_START = [
  ['ip', 'iproute2'],
  ['unshare', 'util-linux'],
  ['nsenter', 'util-linux'],
  ['setpriv', 'util-linux'],
  ['mount', 'mount'],
  ['ping', 'iputils-ping'],
]
/** VMs with a kernel of their own, and building their images. */
const FOR_QEMU = [
  ...FOR_START,
  ['qemu-system-x86_64', 'qemu-system-x86'],
  ['qemu-img', 'qemu-utils'],
  ['mmdebstrap', 'mmdebstrap'],
  ['fakeroot', 'fakeroot'],
  ['mke2fs', 'e2fsprogs'],
  ['newuidmap', 'uidmap'],
  ['xz', 'xz-utils'],
]
const FOR_TESTS = [
  ...FOR_QEMU,
  ['mksquashfs', 'squashfs-tools'],
  ['iptables', 'iptables'],
  ['iperf3', 'iperf3'],
  ['dig', 'dnsutils', 'bind9-dnsutils'],
  ['curl', 'curl'],
  ['socat', 'socat'],
  ['nc', 'netcat-openbsd'],
  ['traceroute', 'traceroute'],
  ['tcpdump', 'tcpdump'],
  ['tshark', 'tshark'],
  ['udhcpc', 'udhcpc'],
  ['dhclient', 'isc-dhcp-client'],
  // Static, so that it alone is a root for a VM.
  ['busybox', 'busybox-static'],
  // dhcpcd-base has the program without a service that would take over this machine's own interfaces.
  ['dhcpcd', 'dhcpcd-base', 'dhcpcd5'],
  ['slirp4netns', 'slirp4netns'],
  ['passt', 'passt'],
  ['nmap', 'nmap'],
  ['dnsmasq', 'dnsmasq-base'],
  ['python3', 'python3'],
  ['ps', 'procps'],
  ['netstat', 'net-tools'],
  ['conntrack', 'conntrack'],
  ['tracepath', 'iputils-tracepath'],
  ['rdisc6', 'ndisc6'],
  ['useradd', 'passwd'],
  ['hostname', 'hostname'],
  // The plugins are not on the PATH.
  ['/usr/lib/cni/bridge', 'containernetworking-plugins'],
  ['podman', 'podman'],
  ['runc', 'runc'],
  ['ctr', 'containerd'],
]

/** Install what is missing or say what it is. Never fatal: doctor and the tests tell what cannot be done without it. */
export function ensureTools(purpose) {
  const wanted = { test: FOR_TESTS, qemu: FOR_QEMU, start: FOR_START }[purpose]
  let missing = wanted.filter(([program]) => !onPath(program))
  if (missing.length === 0) return
  const mayInstall = process.getuid?.() === 0 && onPath('apt-get') && !process.env.NOID_NO_INSTALL
  if (mayInstall) {
    const names = [...new Set(missing.map(([, name]) => name))]
    say(`installing Debian packages: ${names.join(' ')} (NOID_NO_INSTALL=1 forbids it)`)
    apt(['update', '-qq'])
    // All at once is fast; when one of them does not exist here, each by itself and under its other name.
    if (!apt(['install', '-y', '-qq', '--no-install-recommends', ...names])) {
      for (const [, ...candidates] of missing) {
        candidates.some((name) => apt(['install', '-y', '-qq', '--no-install-recommends', name]))
      }
    }
    missing = wanted.filter(([program]) => !onPath(program))
  }
  if (missing.length > 0) {
    const programs = missing.map(([program]) => program).join(', ')
    const packages = [...new Set(missing.map(([, name]) => name))].join(' ')
    say(`missing programs: ${programs}\n  install them with: sudo apt-get install ${packages}`)
  }
}

function apt(args) {
  // Another apt may be at work, and a mirror may never answer.
  const r = spawnSync('apt-get', ['-o', 'DPkg::Lock::Timeout=120', ...args], {
    stdio: 'ignore',
    timeout: APT_MS,
    // tshark asks a question, other packages might: the default answers are right.
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', APT_LISTCHANGES_FRONTEND: 'none' },
  })
  return r.status === 0
}

export function onPath(program) {
  if (program.startsWith('/')) return existsSync(program)
  const dirs = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/local/sbin']
  return dirs.some((dir) => {
    try {
      accessSync(join(dir, program), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}

/** The environment for noid's own processes: its Node first, the system's programs reachable for everybody. */
export function environment() {
  const path = [join(root, 'node_modules', '.bin'), process.env.PATH, '/usr/sbin', '/sbin'].filter(Boolean)
  return { ...process.env, PATH: path.join(delimiter) }
}

export function fail(text) {
  process.stderr.write(`${text}\n`)
  process.exit(1)
}
