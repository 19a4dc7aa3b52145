# Installs a module beside its old copy and renames it over that: writing into a file that a running process
# has mapped would kill the process (SIGBUS).
function(install_by_rename target folder)
  install(TARGETS ${target} LIBRARY DESTINATION ${folder}/.installing)
  install(CODE "
    set(folder \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${folder}\")
    file(RENAME \"\${folder}/.installing/$<TARGET_FILE_NAME:${target}>\" \"\${folder}/$<TARGET_FILE_NAME:${target}>\")
    file(REMOVE_RECURSE \"\${folder}/.installing\")")
endfunction()
