from epsc.bench.run import main

main()
