/**
 * Build what is published into dist/noid: JavaScript instead of TypeScript, because Node strips no types below
 * node_modules. `node scripts/build.mjs`, then `npm pack ./dist/noid`.
 *
 * The checkout's src/ and packages/ become dist/ there, in the same places, so that relative paths keep their meaning;
 * dist/package.json carries what the checkout's package.json is asked for at run time (the version, #tun-tap,
 * #dhcp-packet). The two small libraries travel inside: a stranger's package of that name never takes their place.
 */
import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { manifestOf } from './manifest.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Build into dist/noid; returns its path. Throws with the compiler's words when it refuses. */
export async function build() {
  const out = join(root, 'dist', 'noid')
  rmSync(out, { recursive: true, force: true })
  const tsc = join(root, 'node_modules', 'typescript', 'bin', 'tsc')
  const r = spawnSync(process.execPath, [tsc, '-p', join(root, 'tsconfig.build.json')], { cwd: root, encoding: 'utf8' })
  if (r.status !== 0) throw new Error(`tsc: ${r.stdout}${r.stderr}`)

  const pkg = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const js = (path) => path.replace(/^\.\//, './dist/').replace(/\.ts$/, '.js')
  const inside = (path) => path.replace(/\.ts$/, '.js')
  const { scripts: _s, devDependencies: _d, imports, ...rest } = pkg
  const published = {
    ...rest,
    exports: Object.fromEntries(
      Object.entries(pkg.exports).map(([name, path]) => [
        name,
        path.endsWith('.ts') ? { types: js(path).replace(/\.js$/, '.d.ts'), default: js(path) } : path,
      ]),
    ),
    oclif: {
      ...pkg.oclif,
      commands: js(pkg.oclif.commands),
      hooks: Object.fromEntries(
        Object.entries(pkg.oclif.hooks ?? {}).map(([name, at]) => [name, [at].flat().map((path) => js(path))]),
      ),
    },
  }
  const below = {
    name: pkg.name,
    version: pkg.version,
    private: true,
    type: 'module',
    imports: Object.fromEntries(Object.entries(imports).map(([name, path]) => [name, inside(path)])),
  }
  // What goes into guests is no TypeScript.
  const guest = join('src', 'runtimes', 'qemu', 'guest')
  cpSync(join(root, guest), join(out, 'dist', guest), { recursive: true })
  writeJson(join(out, 'package.json'), published)
  writeJson(join(out, 'dist', 'package.json'), below)
  for (const name of ['bin', 'docs', 'README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'LICENSE']) {
    if (existsSync(join(root, name))) cpSync(join(root, name), join(out, name), { recursive: true })
  }
  for (const door of ['noid.mjs', 'noid-cni.mjs']) chmodSync(join(out, 'bin', door), 0o755)
  writeFileSync(join(out, 'oclif.manifest.json'), await manifestOf(out))
  return out
}

/** Build and pack; returns the tarball's path. */
export async function pack(into) {
  const out = await build()
  mkdirSync(into, { recursive: true })
  const r = spawnSync('npm', ['pack', out, '--pack-destination', into, '--json'], { cwd: into, encoding: 'utf8' })
  if (r.status !== 0) throw new Error(`npm pack: ${r.stderr}`)
  const said = JSON.parse(r.stdout)
  const [first] = Array.isArray(said) ? said : Object.values(said)
  return join(into, first.filename)
}

function writeJson(file, value) {
  writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.stdout.write(`${await build()}\n`)
